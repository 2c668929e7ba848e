"""Which engine runs, and what the manifest says about it."""

import shutil

import pytest
from builders import save_mixture
from pytest_autoquant.manifests.layout import find_schemes
from pytest_autoquant.manifests.records.scheme_manifest import load_scheme
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


def arguments_of(mixture, pairs="wint8_aint8"):
    model = (f"--aq-model={mixture}", "--aq-weights=random")
    return (*ONE, *model, f"--aq-pairs={pairs}", "--aq-granularities=default")


def test_experts_are_replayed_and_the_manifest_has_their_tokens_and_both_costs(spawn, mixture):
    budget = ("--aq-effective-bits=12", "--aq-cost=active")
    run = spawn(*arguments_of(mixture), *budget, "--aq-check-scores", "--aq-whole-model-kl")
    assert run.status == 0, run.output
    manifest = manifest_of(run)
    assert manifest.run_config.engine == "replay"
    (experts,) = [name for name in manifest.layers if name.endswith("mlp.experts")]
    group = manifest.layer_sensitivity[f"{experts}.quant_recipe"]
    assert group.importance > 0
    assert (group.costs[1], group.active_weights) == (4 * 3 * 64 * 128, 2 * 3 * 64 * 128)
    assert manifest.layers[experts].quantized
    assert manifest.num_quantized_layers == len(manifest.layers) == 5
    assert manifest.score_check.groups[f"{experts}.quant_recipe"].kl > 0
    assert manifest.whole_model.kl > 0
    seen = manifest.expert_tokens[experts]
    assert len(seen.counts) == 4
    assert sum(seen.counts) == 2 * manifest.dataset.num_tokens
    assert manifest.run_config.cost == "active"
    state = manifest.autoquant_state
    assert state.minimum_effective_bits < state.active_bits <= 12
    (report,) = run.root.rglob("layer-sensitivity-report.md")
    assert "Within 12 bits per weight that a token is multiplied with" in report.read_text()
    assert "active bits under budget" in (run.root / "summary.md").read_text()


def test_stock_autoquant_counts_the_tokens_of_experts_as_well(spawn, mixture):
    replayed = manifest_of(spawn(*arguments_of(mixture)))
    stock = manifest_of(spawn(*arguments_of(mixture), "--aq-engine=modelopt"))
    assert (replayed.run_config.engine, stock.run_config.engine) == ("replay", "modelopt")
    assert stock.expert_tokens == replayed.expert_tokens
    for name, group in stock.layer_sensitivity.items():
        assert replayed.layer_sensitivity[name].importance == pytest.approx(group.importance, 1e-6)


def test_kl_divergence_of_experts_is_replayed_and_fisher_refuses_them(spawn, mixture):
    replayed = manifest_of(spawn(*arguments_of(mixture), "--aq-method=kl_div"))
    assert replayed.run_config.engine == "replay"
    assert all(group.importance > 0 for group in replayed.layer_sensitivity.values())
    run = spawn(*arguments_of(mixture), "--aq-method=fisher")
    assert run.status == 1
    assert "--aq-method fisher cannot score this case: fisher does not score fused" in run.output
    assert "Traceback" not in run.output


def test_scheme_of_a_mixture_is_exported_within_a_budget_of_active_bits(spawn, mixture):
    run = spawn(
        "cases/test_schemes.py",
        *(f"--aq-model={mixture}", "--aq-weights=random", "--aq-device=cpu", "--aq-sizes=small"),
        *("--aq-schemes=fp8_autoquant_bits10", "--aq-cost=active", "--aq-export"),
    )
    assert run.status == 0, run.output
    (path,) = find_schemes(run.root)
    manifest = load_scheme(path.read_bytes(), source=path.name)
    formats = {name: group.format for group in manifest.groups for name in group.modules}
    linears = [name for name, chosen in formats.items() if chosen]
    experts = [name for name in linears if name.endswith(".experts")]
    assert manifest.export.num_quantized == len(linears) + len(experts) * (4 * 3 - 1)


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
