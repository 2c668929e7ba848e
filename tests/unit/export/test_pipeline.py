"""Schemes derived on the embedded models: support, decisions, damage and checkpoints."""

import json
import re
import shutil
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import modelopt.torch.quantization as mtq
import pytest
import scheme_model
import torch
import transformers
from builders import change_weights, model_state, settings_of
from pytest_autoquant.allocation.frontier_search import MOST_MEASUREMENTS
from pytest_autoquant.allocation.scheme import allocate, builtin_schemes
from pytest_autoquant.allocation.scored_group import ScoredGroup
from pytest_autoquant.calibration.batches import calibration_data, captions_digest
from pytest_autoquant.calibration.captions import CaptionSet
from pytest_autoquant.errors import CaptionError, ExportError, MeasurementError, UsageError
from pytest_autoquant.export import held_out, pipeline, scheme_groups
from pytest_autoquant.export.apply_scheme import GroupFormat, applied
from pytest_autoquant.export.damage import measure_damage
from pytest_autoquant.export.pipeline import SchemeRunner, UnexportedSchemeError
from pytest_autoquant.export.scheme_groups import NUM_BUDGETS
from pytest_autoquant.export.vllm_load import LoadResult
from pytest_autoquant.export.vllm_rules import check_export
from pytest_autoquant.formats.granularity import Granularity
from pytest_autoquant.manifests.records.scheme_manifest import load_scheme
from pytest_autoquant.modelopt_support.status import SUPPORTED, Status
from pytest_autoquant.models.registry import REGISTRY, find_model
from pytest_autoquant.reports.markdown.elements import with_error
from pytest_autoquant.reports.markdown.scheme.damage import uniform_sentence
from pytest_autoquant.reports.markdown.scheme.report import schemes_markdown
from pytest_autoquant.scoring.runner import MeasurementRunner
from scheme_model import VOCABULARY, case_of, held_out_of, mine, open_bench
from scipy.stats import spearmanr

MODELS = [name for name in REGISTRY if name.startswith("tiny-")]
SHORT = held_out_of("A dog runs over the beach.", "Two cats sleep on a red sofa.", "A bus.")


def runner(bench, *, root=None, target=None, held_out=SHORT, may_replace=False, load=False, **more):
    return SchemeRunner(
        bench,
        held_out=held_out,
        target=target,
        root=root,
        may_replace=may_replace,
        load_in_vllm=load,
        **more,
    )


def builtin(name):
    return case_of(builtin_schemes()[name])


@pytest.fixture
def idle():
    """A runner of measurements that loads no model."""
    bench = open_bench()
    yield bench
    assert "model" not in vars(bench)


def test_built_in_schemes_can_be_derived_and_exported(idle, tmp_path):
    schemes = runner(idle, root=tmp_path)
    for name in builtin_schemes():
        assert schemes.support(builtin(name)) == SUPPORTED, name


@pytest.mark.parametrize(
    ("candidates", "reason"),
    [
        (
            ("wint4_aint8",),
            "ModelOpt exports wint4_aint8 with default as W4A16_AWQ, for which a runtime computes "
            "int4 weights (a scale per block) and fp16 activations (a scale per nothing)",
        ),
        (
            ("wfp8_afp8", "wfp16_afp8"),
            "ModelOpt has no export of wfp16_afp8 with default that can be verified",
        ),
    ],
)
def test_candidate_without_a_faithful_export_is_only_measured(idle, tmp_path, candidates, reason):
    case = mine(*candidates)
    assert runner(idle).support(case) == SUPPORTED
    support = runner(idle, root=tmp_path).support(case)
    assert (support.status, support.reason) == (Status.UNSUPPORTED, reason)


def test_support_of_a_scheme_is_that_of_its_candidates(idle):
    support = runner(idle).support(mine("wfp8_afp8", "wnvfp4_anvfp4"))
    assert support == idle.support(mine("wnvfp4_anvfp4").candidates[0])
    assert support.status is Status.NEEDS_CUDA


@pytest.mark.parametrize(
    ("candidates", "reason"),
    [
        (
            ("wint8_aint8",),
            "--aq-target vllm: vllm cannot load wint8_aint8, exported as W8A8_SQ_PER_CHANNEL",
        ),
        (
            ("wint4_afp16", "wint8_afp16"),
            "--aq-target vllm: vllm cannot load wint4_afp16, exported as W4A16_AWQ; "
            "vllm cannot load wint8_afp16, exported as W8A16",
        ),
    ],
)
def test_scheme_without_a_candidate_that_the_target_loads_is_unsupported(idle, candidates, reason):
    support = runner(idle, target="vllm").support(mine(*candidates))
    assert (support.status, support.reason) == (Status.UNSUPPORTED, reason)


def test_scheme_with_one_candidate_that_the_target_loads_is_supported(idle, tmp_path):
    case = mine("wint4_aint8", "wfp8_afp8")
    assert runner(idle, target="vllm", root=tmp_path).support(case) == SUPPORTED


COMPARED = ("groups alone", "uniform")
MIXTURE = "int4_fp8_autoquant_bits6"
FORMATS = ("wint4_afp16", "wfp8_afp8")


@pytest.fixture(scope="module")
def mixture(bench):
    """The manifest of the built-in INT4 and FP8 mixture, not exported."""
    return runner(bench).derive(builtin(MIXTURE))


def test_manifest_names_scheme_model_and_captions(bench, mixture):
    assert mixture.case_id == f"tiny-qwen3-vl/schemes/{MIXTURE}/small"
    assert asdict(mixture.scheme) == {
        "name": MIXTURE,
        "candidates": FORMATS,
        "left_out": {},
        "measure": "effective_bits",
        "amount": 6.0,
        "target": None,
        "max_kl": None,
        "method": "gradient",
        "cost": "stored",
    }
    assert mixture.model == bench.model.record
    assert mixture.environment == bench.environment
    assert mixture.export is None
    assert mixture.dataset.sha256 == bench.data("small").sha256
    assert mixture.measured.captions == "mine.txt"
    assert mixture.measured.sha256 == captions_digest(SHORT.lines, ())
    assert mixture.memory.peak_rss_bytes > 0
    assert list(mixture.timing) == ["score", "solve", *COMPARED, "quantize and measure"]
    assert all(seconds >= 0 for seconds in mixture.timing.values())


def test_groups_are_those_that_were_scored(bench, mixture):
    measurements = bench.scores("small", builtin(MIXTURE).candidates)
    tokens = bench.data("small").scored_tokens
    sizes = {n: p.numel() for n, p in bench.model.module.named_parameters()}
    assert len(mixture.groups) == 24
    for group, *scored in zip(mixture.groups, *(m.groups for m in measurements), strict=True):
        assert group.modules == scored[0].modules == scored[1].modules
        assert group.name == group.modules[0]
        assert group.weights == sum(sizes[f"{name}.weight"] for name in group.modules)
        scores = {name: each.score / tokens for name, each in zip(FORMATS, scored, strict=True)}
        assert group.scores == pytest.approx(scores, rel=1e-12)
    names = [name for group in mixture.groups for name in group.modules]
    assert sorted(names) == sorted(linear.name for linear in bench.model.linears)


def bits_of(group):
    """Bits per weight by format: groups of 128 share 16-bit scales, an FP8 linear one of fp32."""
    fp8 = 8 + 32 * len(group.modules) / group.weights
    return {"wint4_afp16": 4.125, "wfp8_afp8": fp8, None: 16.0}


def scored_groups(manifest):
    return [
        ScoredGroup(
            name=g.name,
            scores=tuple(g.scores.values()),
            bits=tuple(bits_of(g)[name] for name in FORMATS),
            weights=g.weights,
        )
        for g in manifest.groups
    ]


def test_formats_are_the_allocation_and_its_sums(mixture):
    groups = mixture.groups
    expected = allocate(builtin_schemes()[MIXTURE], scored_groups(mixture))
    assert [g.bits for g in groups] == [bits_of(g)[g.format] for g in groups]
    assert [g.format for g in groups] == [
        None if place is None else FORMATS[place] for place in expected.chosen
    ]
    total = sum(g.weights for g in groups)
    quantized = [g for g in groups if g.format is not None]
    assert {g.format for g in quantized} == set(FORMATS)
    allocation = mixture.allocation
    assert allocation.score == pytest.approx(sum(g.scores[g.format] for g in quantized), rel=1e-12)
    assert allocation.effective_bits == pytest.approx(
        sum(bits_of(g)[g.format] * g.weights for g in groups) / total
    )
    assert allocation.effective_bits <= 6
    assert allocation.fraction_of_groups == len(quantized) / len(groups)
    assert allocation.fraction_of_weights == sum(g.weights for g in quantized) / total


def test_damage_is_that_of_the_formats(bench, mixture):
    configs = [bench.config(combination) for combination in builtin(MIXTURE).candidates]
    formats = [
        GroupFormat(modules=group.modules, config=configs[FORMATS.index(group.format)])
        for group in mixture.groups
        if group.format
    ]
    rows = bench.model.tokenize(SHORT.lines)
    held_out = calibration_data(SHORT, bench.model.tokenize, batch_size=2, score_size=3).batches
    with applied(bench.model, formats, bench.data("small").batches):
        damage = measure_damage(bench.model, SHORT, held_out)
    assert mixture.measured.num_tokens == damage.num_tokens == sum(len(r) - 1 for r in rows)
    for field in ("kl", "loss", "loss_before", "agreement"):
        assert getattr(mixture.measured, field) == pytest.approx(getattr(damage, field), rel=1e-4)


def test_frontier_falls_from_the_smallest_choice_to_no_score_at_16_bits(mixture):
    points = mixture.frontier
    assert len(points) == NUM_BUDGETS
    assert points[0].budget == points[0].effective_bits == pytest.approx(4.125)
    assert points[0].score == pytest.approx(sum(g.scores["wint4_afp16"] for g in mixture.groups))
    assert (points[-1].budget, points[-1].effective_bits, points[-1].score) == (16.0, 16.0, 0.0)
    steps = [b.budget - a.budget for a, b in pairwise(points)]
    assert steps == pytest.approx([(16 - 4.125) / (NUM_BUDGETS - 1)] * len(steps))
    assert all(b.score <= a.score for a, b in pairwise(points))
    assert all(p.effective_bits <= p.budget * (1 + 1e-12) for p in points)
    below = max((p for p in points if p.budget <= 6), key=lambda p: p.budget)
    above = min((p for p in points if p.budget >= 6), key=lambda p: p.budget)
    assert above.score <= mixture.allocation.score <= below.score


WIDE = "wint4_afp16-w_group384"
NARROW = "blocks of 384 do not divide the input width 128"


@pytest.fixture
def wide_groups(monkeypatch):
    """INT4 in groups of 384, as wide as down_proj; q, k, v, o, gate and up are 128 wide."""
    overlay = Granularity(name="w_group384", weight={"block_sizes": {-1: 384}})
    monkeypatch.setattr(
        scheme_model,
        "VOCABULARY",
        replace(VOCABULARY, granularities={**VOCABULARY.granularities, overlay.name: overlay}),
    )


def test_candidate_is_left_out_on_the_layers_that_cannot_be_exported(wide_groups, tmp_path):
    warnings = []
    bench = MeasurementRunner(
        settings_of(device="cpu"), REGISTRY["tiny-qwen3-vl"], lambda *_: None, warnings.append
    )
    case = mine(WIDE, "wfp8_afp8", amount=7.5)
    schemes = runner(bench, root=tmp_path)
    assert schemes.support(case) == SUPPORTED
    manifest = schemes.derive(case)
    assert manifest.export.num_quantized == sum(len(g.modules) for g in manifest.groups if g.format)
    assert manifest.allocation.effective_bits <= 7.5
    for group in manifest.groups:
        is_wide = group.name.endswith("down_proj")
        assert group.left_out == ({} if is_wide else {WIDE: f"{NARROW} of {group.name}"})
        assert group.format in ((None, "wfp8_afp8", WIDE) if is_wide else (None, "wfp8_afp8"))
    assert WIDE in {group.format for group in manifest.groups}
    (sentence,) = (text for text in warnings if text.startswith("scheme mine: "))
    assert sentence.startswith(f"scheme mine: {WIDE} cannot be exported where {NARROW}: ")
    assert sentence.endswith("layers.0.mlp.gate_proj and 31 more")


@pytest.mark.parametrize(
    ("candidates", "rule", "problem"),
    [
        (
            (WIDE, "wfp8_afp8"),
            {"amount": 6.0},
            f"effective_bits 6 cannot be reached with {WIDE}, wfp8_afp8; give at least 7.0114,",
        ),
        (
            (WIDE,),
            {"measure": "fraction_of_groups", "amount": 1.0},
            f"fraction_of_groups 1 asks for 24 of 24 layer groups and only 6 can take {WIDE}",
        ),
    ],
)
def test_rule_that_the_shapes_cannot_meet_is_refused_before_any_work(
    idle, wide_groups, candidates, rule, problem
):
    support = runner(idle).support(mine(*candidates, **rule))
    assert support.status is Status.UNSUPPORTED
    assert support.reason.startswith(f"scheme 'mine': {problem}")
    assert f"; {WIDE} cannot be exported where {NARROW}: model.language_model" in support.reason


def test_fused_experts_stay_in_16_bits_by_name(idle):
    architecture = idle.architecture
    fused = replace(architecture.linears[-1], input_widths=(128, 384))
    vars(idle)["architecture"] = replace(architecture, linears=(*architecture.linears[:-1], fused))
    case = mine("wfp8_afp8", measure="fraction_of_groups", amount=1.0)
    assert runner(idle).support(case).reason == (
        "scheme 'mine': fraction_of_groups 1 asks for 24 of 24 layer groups and only 23 can take "
        "wfp8_afp8; give at most 0.9583; wfp8_afp8 cannot be exported where a scheme cannot "
        f"quantize the fused experts: {fused.name}"
    )


def test_activation_only_scheme_stores_16_bits(bench):
    """Every choice stores 16 bits per weight; leaving every group unquantized is the best one."""
    manifest = runner(bench).derive(mine("wfp16_afp8", measure="fraction_of_groups", amount=0.25))
    points = {(p.budget, p.effective_bits, p.score) for p in manifest.frontier}
    assert points == {(16.0, 16.0, 0.0)}
    assert manifest.allocation.effective_bits == 16.0
    assert manifest.allocation.fraction_of_groups == 0.25
    assert manifest.measured.kl > 0


def test_candidates_that_the_target_cannot_load_are_left_out(bench):
    manifest = runner(bench, target="vllm").derive(mine("wint4_afp16", "wfp8_afp8"))
    assert manifest.scheme.candidates == ("wfp8_afp8",)
    assert manifest.scheme.left_out == {
        "wint4_afp16": "vllm cannot load wint4_afp16, exported as W4A16_AWQ"
    }
    assert manifest.scheme.target == "vllm"
    assert {group.format for group in manifest.groups} == {None, "wfp8_afp8"}
    assert all(list(group.scores) == ["wfp8_afp8"] for group in manifest.groups)
    linears, weights = len(bench.model.linears), sum(g.weights for g in manifest.groups)
    assert manifest.frontier[0].effective_bits == 8 + 32 * linears / weights


def test_budget_below_the_remaining_candidates_is_refused(bench):
    schemes = runner(bench, target="vllm")
    with pytest.raises(UsageError) as error:
        schemes.derive(builtin(MIXTURE))
    for message in (str(error.value), schemes.support(builtin(MIXTURE)).reason):
        assert message.startswith(f"scheme {MIXTURE!r}: effective_bits 6 cannot be reached ")
        assert message.endswith(
            "; --aq-target vllm left candidates out: vllm cannot load wint4_afp16, exported as "
            "W4A16_AWQ"
        )


def test_score_that_is_not_finite_is_refused(bench, monkeypatch):
    monkeypatch.setattr(scheme_groups, "per_token", lambda group, data: float("nan"))
    with pytest.raises(MeasurementError) as error:
        runner(bench).derive(mine("wfp8_afp8"))
    assert str(error.value) == (
        f"scheme mine: the score of {bench.model.linears[0].name} is not finite; leave that "
        "candidate out"
    )


def test_held_out_captions_without_two_tokens_are_refused(bench):
    empty = CaptionSet(name="mine.txt", size="held-out", requested=1, lines=("a",))
    with pytest.raises(CaptionError, match=r"^mine.txt: no caption has 2 tokens"):
        runner(bench, held_out=empty).derive(mine("wfp8_afp8"))


@pytest.fixture(scope="module")
def exported(bench, tmp_path_factory):
    """The report root and the manifest of the same mixture, exported."""
    root = tmp_path_factory.mktemp("reports")
    return root, runner(bench, root=root).derive(mine(*FORMATS, amount=6.0))


def test_checkpoint_holds_the_returned_manifest(exported):
    root, manifest = exported
    folder = root / "tiny-qwen3-vl" / "schemes" / "mine"
    assert manifest.path == (folder / "scheme_manifest.json").relative_to(root)
    assert load_scheme((root / manifest.path).read_text(), source="x") == manifest
    assert [path.name for path in folder.parent.iterdir()] == ["mine"]
    phases = ["score", "solve", *COMPARED, "quantize and measure", "export", "check"]
    assert list(manifest.timing) == phases


def test_manifest_describes_its_checkpoint(bench, exported):
    root, manifest = exported
    folder = (root / manifest.path).parent
    export = manifest.export
    quantized = [name for group in manifest.groups if group.format for name in group.modules]
    assert export.num_quantized == len(quantized)
    assert export.bytes_after == (folder / "model.safetensors").stat().st_size
    assert export.bytes_before == (Path(bench.source.location) / "model.safetensors").stat().st_size
    assert export.bytes_after < 0.75 * export.bytes_before
    found = check_export(folder, source=Path(bench.source.location))
    (violation,) = found.violations  # vLLM loads no INT4 by ModelOpt
    assert (violation.rule, violation.text.count("W4A16_AWQ")) == ("algorithm", 1)
    assert (export.violations, export.warnings, export.not_checked) == (found.violations, (), None)
    assert (export.load, export.load_text) == ("not tried", "loading in vLLM was not asked for")
    config = json.loads((folder / "hf_quant_config.json").read_text())["quantization"]
    algorithms = {"wint4_afp16": "W4A16_AWQ", "wfp8_afp8": "FP8"}
    assert {name: each["quant_algo"] for name, each in config["quantized_layers"].items()} == {
        name: algorithms[g.format] for g in manifest.groups if g.format for name in g.modules
    }


def test_scheme_worse_than_allowed_fails_with_its_measurement_and_exports_nothing(
    bench, exported, tmp_path
):
    kl = exported[1].measured.kl
    case = mine(*FORMATS, amount=6.0)
    with pytest.raises(UnexportedSchemeError) as error:
        runner(bench, root=tmp_path, max_kl=kl * 0.999999).derive(case)
    assert re.fullmatch(
        r"scheme mine: the measured KL divergence is 0\.\d+ nats per token, --aq-max-kl allows "
        r"0\.\d+; quantize fewer groups, or to more bits",
        str(error.value),
    )
    measured = error.value.measured
    assert (measured.measured.kl, measured.export) == (kl, None)
    assert measured.scheme.max_kl == kl * 0.999999
    assert not any(tmp_path.rglob("*.safetensors"))
    assert runner(bench, max_kl=kl).derive(case).scheme.max_kl == kl


SEARCHED = ("search", *COMPARED)


def test_fewest_bits_within_a_measured_divergence_are_found_and_exported(bench, tmp_path):
    case = mine(*FORMATS, measure="max_kl", amount=0.02)
    before = model_state(bench.model.module)
    manifest = runner(bench, root=tmp_path).derive(case)
    assert model_state(bench.model.module) == before
    search, measured = manifest.search, manifest.measured
    assert (search.limit, search.num_unmeasured) == (0.02, 0)
    assert 3 < len(search.steps) <= MOST_MEASUREMENTS
    assert [step.passed for step in search.steps] == [step.kl <= 0.02 for step in search.steps]
    passing = [step for step in search.steps if step.passed]
    found = min(passing, key=lambda step: step.effective_bits)
    decided = manifest.allocation.effective_bits, manifest.allocation.score, measured.kl
    assert decided == (found.effective_bits, found.score, found.kl)
    assert 0.01 < measured.kl <= 0.02
    for step in search.steps:  # each is the best prediction for its bits
        best = allocate(mine(*FORMATS, amount=step.effective_bits).scheme, scored_groups(manifest))
        assert best.score == pytest.approx(step.score, rel=1e-12)
    assert list(manifest.timing)[2:6] == [*SEARCHED, "quantize and measure"]
    assert manifest.export.num_quantized == sum(len(g.modules) for g in manifest.groups if g.format)
    text = schemes_markdown({"x": manifest})
    assert f"measured were {len(search.steps)} of {search.num_selections} selections" in text


def test_search_stays_within_the_smaller_limit_and_says_so(bench):
    case = mine("wfp8_afp8", measure="max_kl", amount=0.02)
    manifest = runner(bench, max_kl=0.004).derive(case)
    assert (manifest.search.limit, manifest.scheme.amount) == (0.004, 0.02)
    assert 0 < manifest.measured.kl <= 0.004
    assert (
        "searched within 0.004 nats per token: --aq-max-kl is smaller than the scheme's max_kl of "
        "0.02"
    ) in manifest.notes
    within = runner(bench, max_kl=0.5).derive(case)
    assert within.search.limit == 0.02
    assert not any("searched" in note for note in within.notes)


def test_search_that_only_the_unquantized_model_passes_fails_with_the_least_divergence(bench):
    with pytest.raises(MeasurementError) as error:
        runner(bench).derive(mine("wfp8_afp8", measure="max_kl", amount=1e-9))
    assert re.fullmatch(
        r"scheme mine: only the unquantized model stays within a KL divergence of 1e-09 nats per "
        r"token; of \d+ measured selections the least has \d\S+, at 1\d\.\d+ bits per weight; give "
        r"a larger max_kl, or candidates with more bits",
        str(error.value),
    )


def test_divergence_that_is_not_finite_is_refused_by_the_scheme_and_its_groups(bench, monkeypatch):
    measure, first = held_out.measure_damage, bench.model.linears[0].name
    broken = float("nan")
    monkeypatch.setattr(
        held_out, "measure_damage", lambda *given: replace(measure(*given), kl=broken)
    )
    case = mine("wfp8_afp8", measure="fraction_of_groups", amount=1.0)
    with pytest.raises(MeasurementError) as error:
        runner(bench).derive(case)
    said = "scheme mine: the measured KL divergence is not finite"
    assert str(error.value) == f"{said}; leave wfp8_afp8 out, or give groups more bits"
    outcomes = bench.damage_of_groups

    def first_is_broken(*given):
        ((digest, found),) = outcomes(*given).items()
        groups = (replace(found.groups[0], score=broken), *found.groups[1:])
        return {digest: replace(found, groups=groups)}

    monkeypatch.setattr(bench, "damage_of_groups", first_is_broken)
    with pytest.raises(MeasurementError, match=re.escape(f"{said}, nor is that of {first} alone")):
        runner(bench).derive(case)
    monkeypatch.undo()
    monkeypatch.setattr(bench, "damage_of_groups", first_is_broken)
    manifest = runner(bench).derive(case)
    assert manifest.groups[0].kl is None
    assert manifest.interaction.not_measured.endswith(f"one group quantized alone: {first}")


def test_held_out_captions_that_calibrate_are_counted(bench, capsys):
    calibrating = bench.data("small").captions.lines[:2]
    mixed = held_out_of("A dog runs over the beach.", *calibrating)
    manifest = runner(bench, held_out=mixed).derive(mine("wfp8_afp8"))
    note = (
        "mine.txt: 2 of 3 captions also calibrate (size small of autoquant-captions), so damage is "
        "measured in part on what set the ranges; give others with --aq-held-out"
    )
    assert note in manifest.notes
    assert note in capsys.readouterr().out


def test_single_held_out_caption_has_no_error_bars_and_says_why(bench):
    manifest = runner(bench, held_out=held_out_of("A dog runs.")).derive(mine("wfp8_afp8"))
    assert manifest.notes == (
        "mine.txt: no error bars and no verdict beside the uniform scheme: a single caption is "
        "held out; give at least two",
    )
    interaction, uniform = manifest.interaction, manifest.uniform
    assert (manifest.measured.standard_error, interaction.standard_error) == (None, None)
    assert interaction.ratio > 0
    assert (uniform.verdict, uniform.standard_error) == (None, None)
    assert uniform.difference == manifest.measured.kl - uniform.kl["wfp8_afp8"]
    assert uniform.not_compared == "a single held-out caption gives no error bar"


def test_readme_of_a_checkpoint_says_what_loads_it(exported):
    root, manifest = exported
    text = (root / manifest.path).with_name("README.md").read_text()
    quantized = sum(group.format is not None for group in manifest.groups)
    assert text.startswith("# mine of tiny-qwen3-vl\n")
    groups = f"{quantized} of {len(manifest.groups)} layer groups of the language model"
    assert f"Quantized are {groups}, to FP8, W4A16_AWQ; everything" in text
    assert "- vLLM does not load W4A16_AWQ as ModelOpt writes it.\n" in text
    assert "- transformers does not load this checkpoint." in text
    kl = with_error(manifest.measured.kl, manifest.measured.standard_error)
    assert f"KL divergence {kl} nats per token" in text
    assert f" {uniform_sentence(manifest)} " in text


def test_groups_of_dead_linears_stay_in_16_bits_and_the_export_is_verified(tmp_path):
    """FP8 of a zero weight is exported as NaN; behind a zero ``v_proj`` the input range is zero."""
    layers = "model.language_model.layers"
    folder = tmp_path / "dead"
    shutil.copytree(REGISTRY["tiny-qwen3-vl"].location, folder)
    dead = (f"{layers}.0.mlp.down_proj", f"{layers}.1.self_attn.v_proj")
    change_weights(folder, lambda w: [w[f"{name}.weight"].zero_() for name in dead])
    bench = open_bench(str(folder))
    case = mine("wfp8_afp8", measure="fraction_of_groups", amount=1.0)
    manifest = runner(bench, root=tmp_path / "reports").derive(case)
    unquantized = {group.name for group in manifest.groups if group.format is None}
    after = f"{layers}.1.self_attn.o_proj"
    assert unquantized == {dead[0], f"{layers}.1.self_attn.q_proj", after}
    assert manifest.export.num_quantized == 6 * 7 - 5
    assert manifest.notes[0].startswith(f"all weights are zero of 2 linears: {', '.join(dead)};")
    assert f"all inputs are zero of 1 linear: {after};" in manifest.notes[1]
    assert "## Notes on `mine`" in schemes_markdown({"x": manifest})


def test_group_without_a_signal_is_not_made_a_scheme_of(bench, monkeypatch):
    monkeypatch.setattr(scheme_groups, "silent_groups", lambda measured: ("a.quant_recipe",))
    with pytest.raises(MeasurementError, match=r"^scheme mine: nothing passed through a\.quant_re"):
        runner(bench).derive(mine("wfp8_afp8"))


def test_deriving_again_with_an_export_gives_equal_results(mixture, exported):
    for field in ("groups", "allocation", "frontier", "measured", "interaction", "uniform"):
        assert getattr(exported[1], field) == getattr(mixture, field)


def test_model_is_quantized_once_per_export_and_loaded_in_vllm_only_when_asked(
    bench, tmp_path, monkeypatch
):
    """Each runner quantizes a small linear to learn the export's name, and the uniform scheme."""
    quantize, quantized, folders = mtq.quantize, [], []

    def counted(module, config, forward_loop):
        quantized.append(module is bench.model.module)
        return quantize(module, config, forward_loop)

    def load(folder):
        folders.append(folder.name)
        return LoadResult(outcome="failed", text="vLLM 0 failed: x")

    case = mine("wfp8_afp8", measure="fraction_of_groups", amount=0.25)
    bench.scores("small", case.candidates)
    monkeypatch.setattr(mtq, "quantize", counted)
    monkeypatch.setattr(pipeline, "load_in_vllm", load)
    schemes = runner(bench, root=tmp_path, target="vllm", load=True)
    assert schemes.support(case).is_supported
    assert quantized == [False]
    manifest = schemes.derive(case)
    assert (quantized, folders) == ([False, True, True], ["mine"])
    assert (manifest.export.load, manifest.export.load_text) == ("failed", "vLLM 0 failed: x")
    assert list(manifest.timing)[-1] == "load"
    runner(bench, root=tmp_path, may_replace=True).derive(case)
    assert (quantized[3:], folders) == ([False, True, True], ["mine"])


def test_existing_checkpoint_is_refused_before_any_work(bench, exported, monkeypatch):
    root, manifest = exported
    before = (root / manifest.path).read_bytes()
    monkeypatch.setattr(bench, "scores", lambda *_: pytest.fail("nothing may be scored"))
    with pytest.raises(ExportError, match="exists; replace it with --aq-replace-export") as error:
        runner(bench, root=root).derive(mine("wfp8_afp8"))
    assert not isinstance(error.value, UnexportedSchemeError)
    assert (root / manifest.path).read_bytes() == before


@pytest.mark.parametrize(
    ("step", "raised", "message"),
    [
        ("verify_checkpoint", ExportError("broken"), r"^broken$"),
        ("write_checkpoint", KeyError("x"), r"^the export failed: KeyError: 'x'$"),
    ],
)
def test_failed_export_leaves_no_file_and_keeps_the_measurement(
    bench, mixture, tmp_path, monkeypatch, step, raised, message
):
    def fails(*_):
        raise raised

    monkeypatch.setattr(pipeline, step, fails)
    with pytest.raises(UnexportedSchemeError, match=message) as error:
        runner(bench, root=tmp_path).derive(builtin(MIXTURE))
    assert error.value.measured.measured == mixture.measured
    assert error.value.measured.groups == mixture.groups
    assert error.value.measured.export is None
    assert list((tmp_path / "tiny-qwen3-vl" / "schemes").iterdir()) == []


@pytest.mark.parametrize(
    ("raised", "reason"),
    [(ExportError("x.json: broken"), "x.json: broken"), (KeyError("a"), "KeyError: 'a'")],
)
def test_static_check_that_fails_is_recorded_and_the_checkpoint_stays(
    bench, tmp_path, monkeypatch, raised, reason
):
    def fails(*_, **__):
        raise raised

    monkeypatch.setattr(pipeline, "check_export", fails)
    manifest = runner(bench, root=tmp_path).derive(
        mine("wfp8_afp8", measure="fraction_of_groups", amount=0.25)
    )
    assert (manifest.export.violations, manifest.export.not_checked) == ((), reason)
    assert (tmp_path / manifest.path).parent.joinpath("model.safetensors").is_file()


@pytest.mark.parametrize(
    ("architecture", "not_checked"),
    [
        ("Llama", None),
        (
            "Olmo",
            "the rules tensors, unquantized, exclusion, fusion, shared-scales, scales, kv-cache, "
            "vision: the names in vLLM of OlmoForCausalLM are not known here",
        ),
    ],
)
def test_model_of_text_is_exported_and_checked_as_far_as_its_names_are_known(
    tmp_path, architecture, not_checked
):
    config = getattr(transformers, f"{architecture}Config")(
        **{"vocab_size": 2048, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "max_position_embeddings": 512},
        **{"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0},
    )
    torch.manual_seed(0)
    source = tmp_path / "source"
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(source)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(f"{REGISTRY['tiny-qwen3-vl'].location}/{name}", source / name)
    model = find_model(str(source), random_weights=False)
    settings = settings_of(device="cpu", model=str(source))
    bench = MeasurementRunner(settings, model, lambda *_: None, print)
    case = replace(mine("wfp8_afp8", measure="fraction_of_groups", amount=1.0), model=model.name)
    export = runner(bench, root=tmp_path).derive(case).export
    assert (export.num_quantized, export.violations) == (14, ())
    assert (export.warnings, export.not_checked) == ((), not_checked)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_predicted_and_measured_damage_rank_schemes_alike(held_out, model):
    schemes = runner(open_bench(model), held_out=held_out)
    manifests = [schemes.derive(case_of(each, model)) for each in builtin_schemes().values()]
    predicted = [manifest.allocation.score for manifest in manifests]
    measured = [manifest.measured.kl for manifest in manifests]
    assert spearmanr(predicted, measured).statistic >= 0.9
    assert all(0 < kl < 0.5 for kl in measured)
    assert len({manifest.measured.loss_before for manifest in manifests}) == 1
    by_name = {manifest.scheme.name: manifest for manifest in manifests}
    nested = [by_name[f"fp8_autoquant_{end}"] for end in ("top25", "top50", "full")]
    taken = [{g.name for g in manifest.groups if g.format} for manifest in nested]
    assert taken[0] < taken[1] < taken[2]
