"""Which engine runs, and what the manifest says about it."""

import shutil

import pytest
from builders import save_mixture
from pytest_autoquant.manifests.records.sensitivity_manifest import read_manifest

pytestmark = pytest.mark.slow

ONE = ("cases/test_sensitivity.py", "--aq-device=cpu", "--aq-sizes=small")
PLAIN = (*ONE, "--aq-pairs=wint8_afp16", "--aq-granularities=default")


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """Qwen3-VL with four fused experts per layer: an architecture and a tokenizer, no weights."""
    return save_mixture(tmp_path_factory.mktemp("mixture"))


def manifest_of(run):
    (path,) = run.root.rglob("*_quant_manifest.json")
    return read_manifest(path)


def test_fused_experts_are_scored_by_stock_autoquant_and_the_manifest_says_why(spawn, mixture):
    arguments = (*ONE, f"--aq-model={mixture}", "--aq-weights=random", "--aq-pairs=wint8_aint8")
    run = spawn(*arguments, "--aq-granularities=default")
    assert run.status == 0, run.output
    manifest = manifest_of(run)
    assert manifest.run_config.engine == "modelopt"
    assert "layers.0.mlp.experts at the output of a mixture" in manifest.run_config.engine_reason
    (experts,) = [name for name in manifest.layers if name.endswith("mlp.experts")]
    group = manifest.layer_sensitivity[f"{experts}.quant_recipe"]
    assert group.importance > 0
    assert group.costs[1] == 4 * 3 * 64 * 128
    assert manifest.layers[experts].quantized
    assert manifest.num_quantized_layers == len(manifest.layers) == 5


def test_the_replay_engine_refuses_fused_experts_when_nothing_else_is_allowed(spawn, mixture):
    arguments = (*ONE, f"--aq-model={mixture}", "--aq-weights=random", "--aq-pairs=wint8_aint8")
    run = spawn(*arguments, "--aq-granularities=default", "--aq-engine=replay")
    assert run.status == 1
    assert "--aq-engine replay cannot score this case: ModelOpt scores " in run.output
    assert "Traceback" not in run.output


def test_dense_models_are_replayed_unless_stock_is_asked_for(spawn):
    replayed = manifest_of(spawn(*PLAIN))
    assert (replayed.run_config.engine, replayed.case.status) == ("replay", "measured")
    stock = manifest_of(spawn(*PLAIN, "--aq-engine=modelopt"))
    assert (stock.run_config.engine, stock.run_config.engine_reason) == (
        "modelopt",
        "asked for with --aq-engine",
    )


def test_a_refused_tape_fails_its_cases_and_says_what_to_do(spawn):
    tapes = "--aq-tape-dir=tapes"
    first = spawn(*PLAIN, tapes)
    (tape,) = (first.folder / "tapes").iterdir()
    assert manifest_of(first).run_config.engine == "replay"
    tape.write_bytes(tape.read_bytes()[:1000])
    shutil.rmtree(first.root)
    broken = spawn(*PLAIN, tapes)
    assert broken.status == 1
    assert f"{tape.name}: is not a tape of this version" in broken.output.replace("\n", "")
    assert "delete it to capture it again" in broken.output
    assert not list(broken.root.rglob("*_quant_manifest.json"))


def test_scores_are_checked_unless_the_ini_file_or_the_command_line_says_not(spawn):
    """The project's ini file switches the check off, as every project may."""
    off = spawn(*PLAIN)
    assert manifest_of(off).score_not_checked == "switched off with --aq-no-check-scores"
    on = spawn(*PLAIN, "--aq-check-scores")
    assert on.status == 0, on.output
    check = manifest_of(on).score_check
    assert check.spearman > 0.9
    assert (
        f"  check  tiny-qwen3-vl, gradient, 1 case: Spearman of score and measured KL "
        f"{check.spearman:.4f}"
    ) in on.output
    again = spawn(*PLAIN, "--aq-check-scores", "--aq-resume")
    assert "1 kept from an earlier run" in again.output
