"""From scores to decisions, damage and checkpoints, on the embedded models."""

import json
from dataclasses import asdict
from itertools import pairwise

import pytest
import torch
from pytest_autoquant.allocation.scheme import Scheme, allocate, builtin_schemes
from pytest_autoquant.allocation.scored_group import ScoredGroup
from pytest_autoquant.calibration.batches import calibration_data, captions_digest
from pytest_autoquant.calibration.captions import CaptionSet, load_held_out
from pytest_autoquant.errors import CaptionError, MeasurementError, UsageError
from pytest_autoquant.export import pipeline as derive_module
from pytest_autoquant.export.apply_scheme import Decision, applied, damage
from pytest_autoquant.export.pipeline import BUDGETS, SchemeRunner
from pytest_autoquant.export.vllm_rules import check_export
from pytest_autoquant.grid.case import Combination, SchemeCase
from pytest_autoquant.grid.vocabulary import load_vocabulary
from pytest_autoquant.manifests.scheme_manifest import load_scheme
from pytest_autoquant.modelopt_support.status import SUPPORTED, Status
from pytest_autoquant.models.registry import REGISTRY
from pytest_autoquant.options.settings import read_settings
from pytest_autoquant.plugin.session import AutoquantSession
from scipy.stats import spearmanr

VOCABULARY = load_vocabulary()
MODELS = [name for name in REGISTRY if name.startswith("tiny-")]
SHORT = CaptionSet(
    name="mine.txt",
    size="held-out",
    requested=3,
    lines=("A dog runs over the beach.", "Two cats sleep on a red sofa.", "A bus."),
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def open_bench(folder, model="tiny-qwen3-vl"):
    given = {"schemes": "all", "sizes": "small", "device": "cpu", "model": model}
    settings = read_settings(lambda option: (given.get(option.name), option.flag))
    return AutoquantSession(settings, folder).bench(lambda *_: None, print)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return open_bench(tmp_path_factory.mktemp("bench"))


def deriver(bench, *, root=None, target=None, held_out=SHORT, may_replace=False):
    return SchemeRunner(bench, held_out=held_out, target=target, root=root, may_replace=may_replace)


def case_of(scheme, model="tiny-qwen3-vl"):
    pairs, overlays = VOCABULARY.pairs, VOCABULARY.granularities
    candidates = []
    for name in scheme.candidates:
        pair, _, overlay = name.partition("-")
        candidates.append(Combination(pair=pairs[pair], granularity=overlays[overlay or "default"]))
    return SchemeCase(model=model, scheme=scheme, candidates=tuple(candidates), size="small")


def mine(*candidates, measure="effective_bits", amount=10.0):
    return case_of(Scheme(name="mine", candidates=candidates, measure=measure, amount=amount))


def builtin(name):
    return case_of(builtin_schemes()[name])


# Support, before any work


@pytest.fixture
def idle(tmp_path, monkeypatch):
    """A bench that loads no model."""
    bench = open_bench(tmp_path)
    yield bench
    assert "model" not in vars(bench)


@pytest.mark.parametrize("root", [None, "here"])
@pytest.mark.parametrize("name", builtin_schemes())
def test_the_built_in_schemes_can_be_derived_and_exported(idle, tmp_path, name, root):
    found = deriver(idle, root=tmp_path if root else None).support(builtin(name))
    assert found == SUPPORTED


@pytest.mark.parametrize(
    ("candidates", "said"),
    [
        (
            ("wint4_aint8",),
            "ModelOpt exports wint4_aint8 with default as W4A16_AWQ, which a runtime computes with "
            "int4 weights (a scale per block) and fp16 activations (a scale per nothing)",
        ),
        (
            ("wfp8_afp8", "wfp8_aint8"),
            "ModelOpt exports wfp8_aint8 with default as FP8, which a runtime computes with fp8 "
            "weights (a scale per tensor) and fp8 activations (a scale per tensor)",
        ),
        (
            ("wfp16_afp8",),
            "ModelOpt has no export for wfp16_afp8 with default that could be verified",
        ),
        (
            ("wint8_afp8",),
            "ModelOpt exports wint8_afp8 with default as W8A8_SQ_PER_CHANNEL, which a runtime "
            "computes with int8 weights (a scale per output channel) and int8 activations (a scale "
            "per tensor)",
        ),
    ],
)
def test_what_cannot_be_exported_is_measured_but_not_exported(idle, tmp_path, candidates, said):
    case = mine(*candidates)
    assert deriver(idle).support(case) == SUPPORTED
    found = deriver(idle, root=tmp_path).support(case)
    assert found.status is Status.UNSUPPORTED
    assert found.reason == said


def test_what_cannot_run_here_is_told_as_for_any_case(idle):
    found = deriver(idle).support(mine("wfp8_afp8", "wnvfp4_anvfp4"))
    expected = idle.support(mine("wnvfp4_anvfp4").candidates[0])
    assert found == expected
    assert found.status is Status.NEEDS_CUDA


@pytest.mark.parametrize(
    ("candidates", "algorithm"),
    [(("wint4_afp16",), "W4A16_AWQ"), (("wint8_aint8",), "W8A8_SQ_PER_CHANNEL")],
)
def test_a_scheme_of_which_the_target_can_load_nothing_is_not_derived(idle, candidates, algorithm):
    found = deriver(idle, target="vllm").support(mine(*candidates))
    assert found.status is Status.UNSUPPORTED
    assert found.reason == f"vllm cannot load {candidates[0]}, exported as {algorithm}"


def test_every_candidate_that_the_target_cannot_load_is_told(idle):
    found = deriver(idle, target="vllm").support(mine("wint4_afp16", "wint8_afp16"))
    assert found.reason == (
        "vllm cannot load wint4_afp16, exported as W4A16_AWQ; "
        "vllm cannot load wint8_afp16, exported as W8A16"
    )


def test_of_a_scheme_of_which_the_target_can_load_a_part_that_part_is_derived(idle, tmp_path):
    case = mine("wint4_aint8", "wfp8_afp8")
    assert deriver(idle, target="vllm", root=tmp_path).support(case) == SUPPORTED


# What is derived


@pytest.fixture(scope="module")
def mixture(bench):
    return deriver(bench, held_out=SHORT).derive(builtin("int4_fp8_autoquant_bits6"))


def test_a_manifest_names_its_scheme_its_model_and_its_captions(bench, mixture):
    assert mixture.case_id == "tiny-qwen3-vl/schemes/int4_fp8_autoquant_bits6/small"
    assert asdict(mixture.scheme) == {
        "name": "int4_fp8_autoquant_bits6",
        "candidates": ("wint4_afp16", "wfp8_afp8"),
        "left_out": {},
        "measure": "effective_bits",
        "amount": 6.0,
        "target": None,
    }
    assert mixture.model == bench.model.record
    assert mixture.environment == bench.environment
    assert mixture.export is None
    assert mixture.dataset.sha256 == bench.data("small").sha256
    assert mixture.measured.captions == "mine.txt"
    assert mixture.measured.sha256 == captions_digest(SHORT.lines, ())
    assert mixture.memory.peak_rss_bytes > 0


def test_the_groups_of_a_manifest_are_those_that_were_scored(bench, mixture):
    case = builtin("int4_fp8_autoquant_bits6")
    measurements = bench.scores("small", case.candidates)
    tokens = bench.data("small").scored_tokens
    sizes = {n: p.numel() for n, p in bench.model.module.named_parameters()}
    assert len(mixture.groups) == 24
    for group, *scored in zip(mixture.groups, *(m.groups for m in measurements), strict=True):
        assert group.modules == scored[0].modules == scored[1].modules
        assert group.name == group.modules[0]
        assert group.weights == sum(sizes[f"{name}.weight"] for name in group.modules)
        assert group.scores == {
            "wint4_afp16": pytest.approx(scored[0].score / tokens, rel=1e-12),
            "wfp8_afp8": pytest.approx(scored[1].score / tokens, rel=1e-12),
        }
    names = [name for group in mixture.groups for name in group.modules]
    assert sorted(names) == sorted(linear.name for linear in bench.model.linears)


BITS = {"wint4_afp16": 4.125, "wfp8_afp8": 8.0, None: 16.0}


def test_the_decisions_of_a_manifest_are_the_allocation_and_its_sums(mixture):
    groups = mixture.groups
    expected = allocate(
        builtin_schemes()["int4_fp8_autoquant_bits6"],
        [
            ScoredGroup(
                name=g.name, scores=tuple(g.scores.values()), bits=(4.125, 8.0), weights=g.weights
            )
            for g in groups
        ],
    )
    formats = ("wint4_afp16", "wfp8_afp8")
    assert [g.format for g in groups] == [
        None if i is None else formats[i] for i in expected.chosen
    ]
    total = sum(g.weights for g in groups)
    quantized = [g for g in groups if g.format is not None]
    assert {g.format for g in quantized} == set(formats)
    found = mixture.allocation
    assert found.score == pytest.approx(sum(g.scores[g.format] for g in quantized), rel=1e-12)
    assert found.effective_bits == pytest.approx(
        sum(BITS[g.format] * g.weights for g in groups) / total
    )
    assert found.effective_bits <= 6
    assert found.fraction_of_groups == len(quantized) / len(groups)
    assert found.fraction_of_weights == sum(g.weights for g in quantized) / total


def test_the_damage_of_a_manifest_is_that_of_its_decisions(bench, mixture):
    configs = {
        name: bench.config(combination)
        for name, combination in zip(
            mixture.scheme.candidates, builtin("int4_fp8_autoquant_bits6").candidates, strict=True
        )
    }
    decisions = [
        Decision(modules=g.modules, config=configs[g.format]) for g in mixture.groups if g.format
    ]
    rows = bench.model.tokenize(SHORT.lines)
    held = calibration_data(SHORT, rows, batch_size=2, score_size=3).batches
    with applied(bench.model, decisions, bench.data("small").batches):
        found = damage(bench.model, held)
    assert mixture.measured.num_tokens == found.num_tokens == sum(len(r) - 1 for r in rows)
    for field in ("kl", "loss", "loss_before", "agreement"):
        assert getattr(mixture.measured, field) == pytest.approx(getattr(found, field), rel=1e-4)


def test_the_frontier_falls_from_the_smallest_choice_to_no_score_at_sixteen_bits(mixture):
    points = mixture.frontier
    assert len(points) == BUDGETS
    total = sum(g.weights for g in mixture.groups)
    assert points[0].budget == points[0].effective_bits == pytest.approx(4.125)
    assert points[0].score == pytest.approx(sum(g.scores["wint4_afp16"] for g in mixture.groups))
    assert (points[-1].budget, points[-1].effective_bits, points[-1].score) == (16.0, 16.0, 0.0)
    steps = [b.budget - a.budget for a, b in pairwise(points)]
    assert steps == pytest.approx([(16 - 4.125) / (BUDGETS - 1)] * len(steps))
    assert all(b.score <= a.score for a, b in pairwise(points))
    assert all(p.effective_bits <= p.budget * (1 + 1e-12) for p in points)
    assert total == sum(g.weights for g in mixture.groups)


def test_the_frontier_at_the_schemes_budget_is_about_its_own_score(mixture):
    below = max((p for p in mixture.frontier if p.budget <= 6), key=lambda p: p.budget)
    above = min((p for p in mixture.frontier if p.budget >= 6), key=lambda p: p.budget)
    assert above.score <= mixture.allocation.score <= below.score


def test_phases_are_timed_in_seconds(mixture):
    assert list(mixture.timing) == ["score", "solve", "quantize and measure"]
    assert all(0 <= seconds < 60 for seconds in mixture.timing.values())


def test_deriving_twice_gives_the_same_but_for_the_time(bench, mixture):
    again = deriver(bench).derive(builtin("int4_fp8_autoquant_bits6"))
    assert again.groups == mixture.groups
    assert again.allocation == mixture.allocation
    assert again.frontier == mixture.frontier
    assert again.measured == mixture.measured


def test_activations_alone_store_nothing_less_and_have_a_frontier_of_one_budget(bench):
    """Every choice stores 16 bits per weight; leaving everything alone is the best of them."""
    found = deriver(bench).derive(mine("wfp16_afp8", measure="fraction_of_groups", amount=0.25))
    assert {(p.budget, p.effective_bits, p.score) for p in found.frontier} == {(16.0, 16.0, 0.0)}
    assert found.allocation.effective_bits == 16.0
    assert found.allocation.fraction_of_groups == 0.25
    assert found.measured.kl > 0


def test_nothing_quantized_does_no_damage(bench):
    found = deriver(bench).derive(mine("wfp8_afp8", measure="fraction_of_groups", amount=0.0))
    assert {group.format for group in found.groups} == {None}
    assert (found.measured.kl, found.measured.agreement) == (0.0, 1.0)
    assert found.measured.loss == found.measured.loss_before


def test_candidates_that_the_target_cannot_load_are_left_out_with_the_reason(bench):
    found = deriver(bench, target="vllm").derive(mine("wint4_afp16", "wfp8_afp8"))
    assert found.scheme.candidates == ("wfp8_afp8",)
    assert found.scheme.left_out == {
        "wint4_afp16": "vllm cannot load wint4_afp16, exported as W4A16_AWQ"
    }
    assert found.scheme.target == "vllm"
    assert {group.format for group in found.groups} == {None, "wfp8_afp8"}
    assert all(list(group.scores) == ["wfp8_afp8"] for group in found.groups)
    assert found.frontier[0].effective_bits == 8.0


def test_a_budget_that_what_is_left_cannot_reach_is_refused_with_the_minimum(bench):
    with pytest.raises(UsageError) as caught:
        deriver(bench, target="vllm").derive(builtin("int4_fp8_autoquant_bits6"))
    assert str(caught.value) == (
        "scheme 'int4_fp8_autoquant_bits6': effective_bits 6 cannot be reached with wfp8_afp8; "
        "give at least 8, or a candidate with fewer bits"
    )


def test_a_score_that_is_no_number_is_refused_by_its_group(bench, monkeypatch):
    monkeypatch.setattr(derive_module, "per_token", lambda group, data: float("nan"))
    with pytest.raises(MeasurementError) as caught:
        deriver(bench).derive(mine("wfp8_afp8"))
    assert str(caught.value) == (
        f"scheme mine: the score of {bench.model.linears[0].name} is not finite; leave that "
        "candidate out"
    )


def test_held_out_captions_that_predict_nothing_are_refused(bench):
    empty = CaptionSet(name="mine.txt", size="held-out", requested=1, lines=("a",))
    with pytest.raises(CaptionError, match=r"^mine.txt: no caption has 2 tokens"):
        deriver(bench, held_out=empty).derive(mine("wfp8_afp8"))


# With a checkpoint


@pytest.fixture(scope="module")
def exported(bench, tmp_path_factory):
    root = tmp_path_factory.mktemp("reports")
    return root, deriver(bench, root=root).derive(mine("wint4_afp16", "wfp8_afp8", amount=6.5))


def test_a_checkpoint_holds_the_manifest_that_is_returned(exported):
    root, manifest = exported
    folder = root / "tiny-qwen3-vl" / "schemes" / "mine"
    assert manifest.path == (folder / "scheme_manifest.json").relative_to(root)
    assert load_scheme((root / manifest.path).read_text(), source="x") == manifest
    assert [path.name for path in folder.parent.iterdir()] == ["mine"]
    assert list(manifest.timing) == [
        *("score", "solve", "quantize and measure"),
        *("export", "check", "load"),
    ]


def test_what_a_manifest_says_of_its_checkpoint_is_so(bench, exported):
    root, manifest = exported
    folder = (root / manifest.path).parent
    found = manifest.export
    decided = [name for group in manifest.groups if group.format for name in group.modules]
    assert found.num_quantized == len(decided)
    assert found.bytes_after == (folder / "model.safetensors").stat().st_size
    assert found.bytes_before == sum(p.numel() * 4 for p in bench.model.module.parameters())
    assert [(v.rule, v.tensor, v.text) for v in found.violations] == [
        (v.rule, v.tensor, v.text) for v in check_export(folder)
    ]
    assert found.violations  # vLLM loads no INT4 of ModelOpt's
    layers = json.loads((folder / "hf_quant_config.json").read_text())["quantization"]
    named = {"wint4_afp16": "W4A16_AWQ", "wfp8_afp8": "FP8"}
    assert {n: each["quant_algo"] for n, each in layers["quantized_layers"].items()} == {
        name: named[g.format] for g in manifest.groups if g.format for name in g.modules
    }


def test_an_export_changes_neither_decisions_nor_damage(bench, exported):
    plain = deriver(bench).derive(mine("wint4_afp16", "wfp8_afp8", amount=6.5))
    _, manifest = exported
    assert plain.groups == manifest.groups
    assert plain.measured == manifest.measured


def test_an_export_that_exists_is_refused_and_stays(bench, exported):
    root, manifest = exported
    before = (root / manifest.path).read_bytes()
    with pytest.raises(MeasurementError, match="exists; replace it with --aq-replace-export"):
        deriver(bench, root=root).derive(mine("wfp8_afp8"))
    assert (root / manifest.path).read_bytes() == before


def test_an_export_that_exists_is_refused_before_any_work(bench, exported, monkeypatch):
    root, _ = exported
    monkeypatch.setattr(bench, "scores", lambda *_: pytest.fail("it was scored"))
    with pytest.raises(MeasurementError, match="exists"):
        deriver(bench, root=root).derive(mine("wfp8_afp8"))


def test_a_failure_after_the_export_leaves_nothing(bench, tmp_path, monkeypatch):
    def broken(folder):
        assert (folder / "model.safetensors").is_file()
        raise MeasurementError("broken")

    monkeypatch.setattr(derive_module, "check_export", broken)
    with pytest.raises(MeasurementError, match=r"^broken$"):
        deriver(bench, root=tmp_path).derive(mine("wfp8_afp8"))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert list((tmp_path / "tiny-qwen3-vl" / "schemes").iterdir()) == []


# What is predicted is what happens


@pytest.mark.parametrize("model", MODELS)
def test_schemes_rank_alike_by_prediction_and_by_measured_damage(tmp_path, model):
    bench = open_bench(tmp_path, model)
    one = deriver(bench, held_out=load_held_out(None))
    found = [one.derive(case_of(scheme, model)) for scheme in builtin_schemes().values()]
    predicted = [manifest.allocation.score for manifest in found]
    measured = [manifest.measured.kl for manifest in found]
    assert spearmanr(predicted, measured).statistic >= 0.9
    assert all(0 < kl < 0.5 for kl in measured)
    assert len({manifest.measured.loss_before for manifest in found}) == 1
    by_name = {manifest.scheme.name: manifest for manifest in found}
    nested = [by_name[f"fp8_autoquant_{end}"] for end in ("top25", "top50", "full")]
    taken = [{g.name for g in manifest.groups if g.format} for manifest in nested]
    assert taken[0] < taken[1] < taken[2]
