"""The measuring runner on the embedded model: what is scored together, and by which engine."""

import json
import shutil
from dataclasses import dataclass, field, replace

import pytest
from builders import one_thread, run_plan
from odd_model import save_odd_model
from pytest_autoquant.calibration.captions import CaptionSet
from pytest_autoquant.errors import MeasurementError, ModelError, NotReplayableError, UsageError
from pytest_autoquant.grid.assignment import Assignment
from pytest_autoquant.manifests.fingerprint import fingerprint_of
from pytest_autoquant.modelopt_support.status import Status
from pytest_autoquant.options.run_plan import RunPlan
from pytest_autoquant.regression.recorded_model import RecordedModel
from pytest_autoquant.scoring.runner import MeasurementRunner

SWEEP_REASON = "scores every config of a size in one sweep"


@pytest.fixture(scope="module", autouse=True)
def on_one_thread():
    with one_thread():
        yield


@dataclass
class Bench:
    """A runner with its plan, and what it showed.

    Attributes:
        phases: phases of which progress was reported, since the list was cleared.
        warnings: messages that the runner warned with.
    """

    plan: RunPlan
    earlier: dict = field(default_factory=dict)
    recorded: RecordedModel | None = None
    phases: list = field(default_factory=list)
    warnings: list = field(default_factory=list)

    def __post_init__(self):
        self.runner = MeasurementRunner(
            self.plan.settings,
            self.plan.source,
            lambda phase, done, total: self.phases.append(phase),
            self.warnings.append,
            earlier=self.earlier,
            recorded=self.recorded,
        )
        self.runner.assign(self.plan.assign(self.plan.cases, workers=1))

    def case(self, name):
        """Return a case by its test id."""
        return self.plan.case_named(name)

    def measure(self, name):
        """Measure a case; return its manifest and the phases that it took."""
        self.phases.clear()
        manifest = self.runner.measure(self.case(name)).manifest
        return manifest, set(self.phases)


def bench_of(*, earlier=None, **options):
    """Open a runner for these options; four captions are scored."""
    defaults = {"device": "cpu", "sizes": "small", "score_size": "4"}
    defaults |= {"check_scores": False, "whole_model_kl": False}
    return Bench(plan=run_plan(**(defaults | options)), earlier=earlier or {})


def scores(manifest):
    return {name: group.scores for name, group in manifest.layer_sensitivity.items()}


@pytest.fixture(scope="module")
def int8():
    """A runner of weight-only INT8, whose default is per output channel, and what it measured."""
    bench = bench_of(pairs="wint8_afp16")
    granularities = ("a_per_token_dynamic", "default", "w_per_out_channel", "w_per_tensor")
    cases = [bench.case(f"wint8_afp16-{name}-small") for name in granularities]
    bench.runner.assign(bench.plan.assign(cases, workers=1))
    return bench, {case.test_id: bench.measure(case.test_id) for case in cases}


# Structure cases


def test_structure_case_knows_the_layers_of_a_model_that_is_here(tmp_path):
    folder = save_odd_model(tmp_path / "odd")
    bench = bench_of(model=str(folder), pairs="wint4_afp16")
    check = bench.runner.check(bench.plan.combination_named("wint4_afp16-w_group64"))
    qkv = sum(rows * (96 * 4 + 2 * 16) for rows in (64, 64, 64))
    o, gate_up = 96 * (64 * 4 + 16), 2 * 200 * (96 * 4 + 2 * 16)
    down = 96 * (200 * 4 + 4 * 16)
    weights = 4 * 64 * 96 + 3 * 96 * 200
    assert check.effective_bits == (qkv + o + gate_up + down) / weights
    assert [note.partition(";")[0] for note in check.notes] == [
        "block size does not divide the input width 96 of model.layers.0.self_attn.q_proj and 4 "
        "more linears: padded to 128",
        "block size does not divide the input width 200 of model.layers.0.mlp.down_proj: padded "
        "to 256",
    ]
    assert "model" not in vars(bench.runner)
    elsewhere = bench_of(model="someone/unknown", pairs="wint4_afp16").runner
    nominal = elsewhere.check(bench.plan.combination_named("wint4_afp16-w_group64"))
    assert (nominal.effective_bits, nominal.notes) == (4.25, ())


# Sweeps and aliases


def test_first_case_of_a_batch_scores_the_whole_batch(int8):
    _, measured = int8
    first, *others = [phases for _, phases in measured.values()]
    assert {"capture", "sweep"} & first
    assert others == [set()] * 3


def test_case_with_the_config_of_an_earlier_one_is_its_alias(int8):
    _, measured = int8
    default, _ = measured["wint8_afp16-default-small"]
    alias, _ = measured["wint8_afp16-w_per_out_channel-small"]
    tensor, _ = measured["wint8_afp16-w_per_tensor-small"]
    assert (default.case.status, default.case.alias_of) == ("measured", None)
    assert (alias.case.status, alias.case.alias_of) == ("alias", default.case.case_id)
    assert (tensor.case.status, tensor.case.alias_of) == ("measured", None)
    assert scores(alias) == scores(default) != scores(tensor)
    assert alias.timing == {}
    assert {"capture", "sweep", "total"} == {*default.timing}


def test_case_without_effect_measures_for_no_other(int8):
    """It precedes the default, whose config it has, and the plugin skips it."""
    bench, measured = int8
    name = "wint8_afp16-a_per_token_dynamic-small"
    assert next(iter(measured)) == name
    assert bench.runner.support(bench.case(name).combination).status is Status.NO_EFFECT
    default, _ = measured["wint8_afp16-default-small"]
    assert measured[name][0].case.alias_of == default.case.case_id


def test_original_is_the_first_selected_case_also_of_another_shard():
    bench = bench_of(pairs="wint8_afp16", granularities="default,w_per_out_channel")
    default, same = bench.plan.cases
    bench.runner.assign(Assignment(selected=(default, same), parts={same.case_id: 0}))
    manifest, phases = bench.measure(same.test_id)
    assert manifest.case.alias_of == default.case_id
    assert "sweep" in phases
    bench.runner.assign(Assignment(selected=(same,), parts={same.case_id: 0}))
    assert bench.measure(same.test_id)[0].case.alias_of is None


def test_case_of_another_part_or_size_is_scored_by_itself():
    bench = bench_of(pairs="wint8_afp16,wint4_afp16", granularities="default", sizes="small,medium")
    int8, int4, medium, _ = bench.plan.cases
    parts = {int8.case_id: 0, int4.case_id: 1, medium.case_id: 0}
    bench.runner.assign(Assignment(selected=bench.plan.cases, parts=parts))
    assert "sweep" in bench.measure(int8.test_id)[1]
    assert "sweep" in bench.measure(int4.test_id)[1]
    assert bench.measure(int4.test_id)[1] == set()
    assert {"capture", "sweep"} <= bench.measure(medium.test_id)[1]


def test_combinations_of_a_scheme_are_scored_together(int8):
    bench, measured = int8
    wanted = [
        bench.case(f"{name}-small").combination
        for name in ("wint8_afp16-default", "wint4_afp16-default", "wfp8_afp16-default")
    ]
    bench.phases.clear()
    before, int4, fp8 = bench.runner.scores("small", wanted)
    assert "sweep" in bench.phases
    manifest, _ = measured["wint8_afp16-default-small"]
    per_token = [group.score / manifest.dataset.num_scored_tokens for group in before.groups]
    assert per_token == [group.importance for group in manifest.layer_sensitivity.values()]
    assert len({b.groups[0].score for b in (before, int4, fp8)}) == 3
    bench.phases.clear()
    assert bench.runner.scores("small", wanted[1:]) == (int4, fp8)
    assert bench.phases == []


def test_config_that_cannot_run_fails_alone(int8):
    """MXFP4 needs CUDA; on the CPU its quantizer raises in the first forward."""
    bench, _ = int8
    case = bench.case("wfp4_afp16-default-small")
    assert not bench.runner.support(case.combination).is_supported
    with pytest.raises(
        MeasurementError, match=f"^{case.test_id} could not be measured: "
    ) as caught:
        bench.runner.measure(case)
    assert "Traceback" in caught.value.trace
    bench.phases.clear()
    with pytest.raises(MeasurementError):
        bench.runner.measure(case)
    assert bench.phases == []


def test_config_that_cannot_run_does_not_join_a_sweep():
    bench = bench_of(pairs="wint8_afp16,wfp4_afp16", granularities="default")
    fp4, int8 = bench.plan.cases
    bench.measure(int8.test_id)
    with pytest.raises(MeasurementError):
        bench.measure(fp4.test_id)
    assert "capture" in bench.phases  # it was not tried before


# The model and the captions


def test_model_that_cannot_be_loaded_is_tried_once(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    bench = bench_of(model=str(tmp_path), pairs="wint8_afp16", granularities="default")
    errors = []
    for _ in range(2):
        with pytest.raises(ModelError) as caught:
            bench.runner.measure(bench.plan.cases[0])
        errors.append(caught.value)
    assert errors[0] is errors[1]
    assert [phase for phase in bench.phases if phase.startswith("load")] == [
        f"load {bench.plan.source.name}"
    ]


def test_too_few_captions_are_warned_of_once_and_noted_in_every_manifest(tmp_path):
    captions = tmp_path / "mine.txt"
    captions.write_text("A dog runs over the beach.\nTwo cats sleep.\nHm\n")
    bench = bench_of(
        captions=str(captions), pairs="wint8_afp16", granularities="default,w_per_tensor"
    )
    manifests = [bench.measure(case.test_id)[0] for case in bench.plan.cases]
    assert len(bench.warnings) == len(set(bench.warnings)) >= 1
    assert all(set(bench.warnings) <= set(manifest.case.notes) for manifest in manifests)
    assert "mine.txt" in bench.warnings[0]


@pytest.mark.parametrize(
    ("options", "limit"),
    [({}, 512), ({"max_tokens": "7"}, 7), ({"max_tokens": "100000"}, 512)],
    ids=["default", "asked for", "more than the model has positions for"],
)
def test_captions_are_cut_to_the_limit_or_the_models_positions(tmp_path, options, limit):
    captions = tmp_path / "mine.txt"
    captions.write_text("A dog.\n" + "a dog runs over the beach and " * 900 + "\n")
    bench = bench_of(
        captions=str(captions), pairs="wint8_afp16", granularities="default", **options
    )
    assert bench.runner.model.max_positions == 512
    manifest, _ = bench.measure("wint8_afp16-default-small")
    data = manifest.dataset
    assert (data.max_tokens, data.num_truncated) == (limit, 1)
    assert max(data.token_lengths) == limit
    note = (
        f"mine.txt: cut 1 caption to {limit} tokens, the limit of --aq-max-tokens or of the model"
    )
    assert note in manifest.case.notes
    assert note in bench.warnings
    held_out = CaptionSet(
        name="h.txt", size="held-out", requested=1, lines=("a red bus drives by " * 900,)
    )
    assert max(bench.runner.held_out(held_out, batch_size=8).token_lengths) == limit
    assert bench.warnings[-1].startswith(f"h.txt: cut 1 caption to {limit} tokens")


def test_sizes_of_a_short_file_are_one_measurement_and_its_aliases(tmp_path):
    """Also of the other config that the first sweep scored."""
    captions = tmp_path / "mine.txt"
    captions.write_text("A dog runs over the beach.\nTwo cats sleep.\n")
    bench = bench_of(
        captions=str(captions),
        sizes="small,medium,large",
        pairs="wint8_afp16",
        granularities="default,w_per_tensor",
    )
    for granularity in ("default", "w_per_tensor"):
        small, medium, large = (
            bench.measure(f"wint8_afp16-{granularity}-{size}")
            for size in ("small", "medium", "large")
        )
        assert ("sweep" in small[1], medium[1], large[1]) == (
            granularity == "default",
            set(),
            set(),
        )
        assert small[0].case.status == "measured"
        for manifest, _ in (medium, large):
            assert manifest.case.status == "alias"
            assert manifest.case.alias_of == small[0].case.case_id
            assert scores(manifest) == scores(small[0])
            assert (
                f"size {manifest.case.size} holds the same captions as small: measured once, so "
                "equal results say nothing of stability"
            ) in manifest.case.notes


# Engines


@pytest.fixture(scope="module")
def stock_only(tmp_path_factory):
    """A folder with a pair and a granularity that only stock AutoQuant can score."""
    folder = tmp_path_factory.mktemp("conf")
    (folder / "quant_pair").mkdir()
    (folder / "quant_pair" / "smooth.yaml").write_text(
        "name: smooth\nweight: int8\nactivation: int8\n"
        "format_name: INT8_SMOOTHQUANT_CFG\nexperimental: true\n"
    )
    (folder / "quant_granularity").mkdir()
    (folder / "quant_granularity" / "a_blocks.yaml").write_text(
        'name: a_blocks\nquant_cfg_overrides:\n  "*input_quantizer": {block_sizes: {"-1": 16}}\n'
    )
    return str(folder)


@pytest.mark.parametrize(
    ("options", "name", "engine", "refusal"),
    [
        ({}, "wint8_aint8-default-small", "replay", None),
        ({"engine": "replay"}, "wint8_aint8-default-small", "replay", None),
        ({"engine": "modelopt"}, "wint8_aint8-default-small", "modelopt", None),
        ({}, "smooth-default-small", "modelopt", "needs more than recorded ranges"),
        ({}, "wint8_aint8-a_blocks-small", "modelopt", "has static blocks"),
    ],
)
def test_engine_is_chosen_by_option_and_config(stock_only, options, name, engine, refusal):
    bench = bench_of(conf=stock_only, **options)
    assert bench.runner.fingerprint(bench.case(name)).engine == engine
    if refusal is not None:
        for option, value in (("engine", "replay"), ("method", "fisher")):
            forced = bench_of(conf=stock_only, **{option: value})
            with pytest.raises(MeasurementError) as caught:
                forced.runner.measure(forced.case(name))
            assert str(caught.value).startswith(f"--aq-{option} {value} cannot score this case: ")
            assert refusal in str(caught.value)


@pytest.mark.parametrize(
    ("options", "engine", "reason"),
    [
        ({"engine": "modelopt"}, "modelopt", "asked for with --aq-engine"),
        ({"method": "kl_div"}, "replay", SWEEP_REASON),
        ({"method": "fisher"}, "replay", SWEEP_REASON),
        (
            {"method": "kl_div", "engine": "modelopt"},
            "modelopt",
            "asked for with --aq-engine",
        ),
        (
            {"save_state": True},
            "modelopt",
            "the replay engine cannot score this case: --aq-save-state asks for ModelOpt's own "
            "search state",
        ),
    ],
)
def test_manifest_says_which_engine_scored_and_why(options, engine, reason):
    bench = bench_of(pairs="wint8_afp16", granularities="default", score_size="1", **options)
    measured = bench.runner.measure(bench.plan.cases[0])
    run = measured.manifest.run_config
    assert (run.engine, run.engine_reason) == (engine, reason)
    assert (measured.state is not None) == ("save_state" in options)
    assert measured.manifest.case.status == "measured"


def test_replay_says_why_it_scored(int8):
    _, measured = int8
    assert {(m.run_config.engine, m.run_config.engine_reason) for m, _ in measured.values()} == {
        ("replay", SWEEP_REASON)
    }


def run_a_linear_twice_once(bench):
    """Let the first forward of the model run a linear twice, which one record cannot hold."""
    mlp = bench.runner.model.module.model.language_model.layers[0].mlp

    def run_again(module, args, output):
        handle.remove()
        module.gate_proj(args[0])

    handle = mlp.register_forward_hook(run_again)


def test_size_that_cannot_be_replayed_is_scored_by_stock_autoquant():
    bench = bench_of(
        pairs="wint8_afp16",
        granularities="default,w_per_tensor",
        sizes="small,medium",
        score_size="1",
    )
    small, other, medium, _ = bench.plan.cases
    run_a_linear_twice_once(bench)
    for case in (small, other):
        manifest, phases = bench.measure(case.test_id)
        assert manifest.run_config.engine == "modelopt"
        assert manifest.run_config.engine_reason.startswith(
            "the replay engine cannot score this case: "
        )
        assert "runs several times per forward" in manifest.run_config.engine_reason
        assert "score" in phases
    manifest, _ = bench.measure(medium.test_id)
    assert (manifest.run_config.engine, manifest.run_config.engine_reason) == (
        "replay",
        SWEEP_REASON,
    )


def test_size_that_cannot_be_replayed_fails_where_replay_is_asked_for():
    bench = bench_of(pairs="wint8_afp16", granularities="default", engine="replay")
    run_a_linear_twice_once(bench)
    with pytest.raises(NotReplayableError, match="runs several times per forward"):
        bench.measure("wint8_afp16-default-small")


# Resumed runs


def test_other_merges_in_the_tokenizer_are_a_changed_input(int8, tmp_path):
    """Weights and captions are the same; only the token ids tell."""
    bench, measured = int8
    default, _ = measured["wint8_afp16-default-small"]
    folder = tmp_path / "tiny-qwen3-vl"
    shutil.copytree(bench.plan.source.location, folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    del tokenizer["model"]["merges"][200:]
    path.write_text(json.dumps(tokenizer))
    name = "wint8_afp16-default-small"
    other = bench_of(model=str(folder))
    case = other.case(name)
    other = bench_of(model=str(folder), earlier={case.case_id: fingerprint_of(default)})
    (change,) = other.runner.changes(case)
    digest = other.runner.data("small").tokens_sha256
    assert str(change) == f"tokens {default.dataset.tokens_sha256[:16]} -> {digest[:16]}"
    assert other.runner.data("small").sha256 == default.dataset.sha256


def test_case_measured_on_the_same_inputs_has_no_changes(int8):
    _, measured = int8
    default, tensor = (measured[f"wint8_afp16-{g}-small"][0] for g in ("default", "w_per_tensor"))
    earlier = {
        default.case.case_id: fingerprint_of(default),
        tensor.case.case_id: replace(fingerprint_of(tensor), torch="2.0.0", device="cuda"),
    }
    bench = bench_of(
        pairs="wint8_afp16", granularities="default,w_per_tensor,w_group64", earlier=earlier
    )
    kept, changed, new = bench.plan.cases
    assert bench.runner.changes(kept) == ()
    assert [change.field for change in bench.runner.changes(changed)] == ["device", "torch"]
    assert bench.runner.changes(new) is None
    assert bench.phases[0].startswith("load")
    assert "sweep" in bench.measure(changed.test_id)[1]
    assert bench.measure(new.test_id)[1] == set()
    assert "sweep" in bench.measure(kept.test_id)[1]


def test_model_whose_name_is_taken_is_refused_before_anything_is_measured(int8):
    record = int8[0].runner.model.record
    taken = RecordedModel(record=replace(record, digest="0" * 64), manifest="a/b.json")
    options = {"device": "cpu", "sizes": "small", "pairs": "wint8_afp16"}
    bench = Bench(plan=run_plan(**options), recorded=taken)
    for _ in range(2):
        bench.phases.clear()
        with pytest.raises(ModelError, match=f"digest {'0' * 16}, .* has {record.digest[:16]}"):
            bench.measure("wint8_afp16-default-small")
    assert bench.phases == []  # the second case does not load it again
    same = Bench(plan=bench.plan, recorded=RecordedModel(record=record, manifest="a/b.json"))
    assert same.runner.model.record == record


def test_budget_that_no_selected_case_reaches_is_refused_before_the_model_is_loaded(tmp_path):
    (tmp_path / "quant_pair").mkdir()
    (tmp_path / "quant_pair" / "mine.yaml").write_text(
        "name: mine\nweight: fp8\nactivation: fp8\nformat_name: FP8_PER_CHANNEL_PER_TOKEN_CFG\n"
    )
    bench = bench_of(conf=str(tmp_path), pairs="mine", effective_bits="3")
    bench.plan.check_budget(bench.plan.cases)
    with pytest.raises(
        UsageError, match="--aq-effective-bits 3: too small for every selected case"
    ):
        bench.measure("mine-default-small")
    assert "model" not in vars(bench.runner)


# The check of the scores


def test_scores_of_the_whole_batch_are_checked_with_its_first_case():
    bench = bench_of(pairs="wint8_afp16", check_scores=None)
    names = [f"wint8_afp16-{name}-small" for name in ("default", "w_per_out_channel", "w_group64")]
    bench.runner.assign(bench.plan.assign([bench.case(name) for name in names], workers=1))
    first, alias, third = (bench.measure(name) for name in names)
    assert "KL divergence" in first[1]
    assert (alias[1], third[1]) == (set(), set())
    checks = [manifest.score_check for manifest, _ in (first, alias, third)]
    assert checks[0] == checks[1] != checks[2]
    assert [check.captions for check in checks] == [4] * 3
    assert set(checks[2].groups) == set(third[0].layer_sensitivity)


@pytest.mark.parametrize(
    ("options", "size", "reason"),
    [
        ({"check_scores": None}, "medium", "by default only the embedded models are checked"),
        ({"check_scores": None, "method": "kl_div"}, "small", None),
    ],
    ids=["medium", "kl_div"],
)
def test_scores_that_are_not_checked_say_why_and_measured_ones_need_no_check(options, size, reason):
    name = f"wint8_afp16-default-{size}"
    manifest, _ = bench_of(pairs="wint8_afp16", sizes=size, score_size="2", **options).measure(name)
    assert manifest.score_check is None
    found = manifest.score_not_checked
    assert found is None if reason is None else found.startswith(reason)


def test_any_size_is_checked_where_it_is_asked_for():
    bench = bench_of(pairs="wint8_afp16", sizes="medium", score_size="2", check_scores=True)
    assert bench.measure("wint8_afp16-default-medium")[0].score_check.captions == 2


# The whole model


@pytest.mark.parametrize("method", ["gradient", "kl_div"])
def test_whole_models_of_a_batch_are_measured_with_its_first_case(method):
    bench = bench_of(pairs="wint8_afp16", method=method, whole_model_kl=None)
    names = [f"wint8_afp16-{name}-small" for name in ("default", "w_per_out_channel", "w_group64")]
    bench.runner.assign(bench.plan.assign([bench.case(name) for name in names], workers=1))
    first, alias, third = (bench.measure(name) for name in names)
    assert "whole-model KL" in first[1]
    assert (alias[1], third[1]) == (set(), set())
    manifest, whole = third[0], third[0].whole_model
    assert first[0].whole_model == alias[0].whole_model != whole
    assert whole.captions == 4
    total = manifest.autoquant_state.total_score
    ratio = whole.kl / total if method == "kl_div" else total / whole.kl
    found = {"gradient": whole.score_per_kl, "kl_div": whole.interaction_ratio}
    assert {name: each for name, each in found.items() if each is not None} == {
        method: pytest.approx(ratio, rel=1e-9)
    }
    if method == "kl_div":  # damages of eight bits add up
        assert abs(ratio - 1) < 4 * whole.ratio_standard_error < 1


def test_whole_model_that_is_switched_off_says_so(int8):
    for manifest, phases in int8[1].values():
        assert "whole-model KL" not in phases
        assert manifest.whole_model is None
        assert manifest.whole_model_not_measured == "switched off with --aq-no-whole-model-kl"


def test_what_stock_autoquant_scored_is_neither_checked_nor_measured_whole():
    options = {"check_scores": None, "whole_model_kl": None, "engine": "modelopt"}
    bench = bench_of(pairs="wint8_afp16", score_size="1", **options)
    manifest, phases = bench.measure("wint8_afp16-default-small")
    assert not {"KL divergence", "whole-model KL"} & phases
    assert (manifest.score_check, manifest.whole_model) == (None, None)
    for reason in (manifest.score_not_checked, manifest.whole_model_not_measured):
        assert reason.startswith("stock AutoQuant scored the case; ")
