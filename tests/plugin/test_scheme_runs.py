"""Schemes in whole runs: only when asked for, written whole or not at all, refused in words."""

import json
import re
import shutil
import signal
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pytest
from pytest_autoquant.allocation.scheme import builtin_schemes
from pytest_autoquant.manifests.layout import find_schemes
from pytest_autoquant.manifests.records.scheme_manifest import load_scheme
from safetensors import safe_open

pytestmark = pytest.mark.slow

FULL, HALF = "fp8_autoquant_full", "fp8_autoquant_top50"
CPU = ("-p", "no:benchmark", "--aq-device=cpu", "--aq-sizes=small")
SCHEMES = ("cases/test_schemes.py", *CPU, f"--aq-schemes={HALF},{FULL}")
EXPORT = (*SCHEMES, "--aq-export")
FILES = {
    *("config.json", "generation_config.json", "hf_quant_config.json", "model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", "scheme_manifest.json"),
}

NOT_EXPORTED = (
    "ModelOpt exports wint4_aint8 with default as W4A16_AWQ, for which a runtime computes int4 "
    "weights (a scale per block) and fp16 activations (a scale per nothing)"
)


@dataclass(frozen=True)
class Conf:
    """Schemes of a user, for ``--aq-conf``."""

    folder: Path

    @property
    def option(self):
        return f"--aq-conf={self.folder}"


@pytest.fixture(scope="session")
def user_schemes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conf")
    (folder / "scheme").mkdir()
    rules = {
        "few_bits": ("[wfp8_afp8]", "effective_bits: 7.5"),
        "hybrid": ("[wint4_aint8, wfp8_afp8]", "effective_bits: 9"),
        "mixture": ("[wint4_afp16-w_group64, wfp8_afp8]", "effective_bits: 8.5"),
        "mine": ("[wint8_afp16]", "fraction_of_groups: 0.1"),
        "within": ("[wint4_afp16, wfp8_afp8]", "max_kl: 0.02"),
        "too_close": ("[wfp8_afp8]", "max_kl: 1.0e-9"),
    }
    for name, (candidates, measure) in rules.items():
        text = f"name: {name}\ncandidates: {candidates}\n{measure}\n"
        (folder / "scheme" / f"{name}.yaml").write_text(text)
    return Conf(folder)


def folder_of(root, scheme):
    return root / "tiny-qwen3-vl" / "schemes" / scheme


def manifests(root):
    found = (load_scheme(path.read_bytes(), source=path.name) for path in find_schemes(root))
    return {manifest.scheme.name: manifest for manifest in found}


def measured(manifest):
    """What must be the same in every way to run a scheme."""
    return (
        manifest.case_id,
        manifest.groups,
        manifest.allocation,
        manifest.frontier,
        manifest.measured,
        manifest.export,
    )


def contents(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


@pytest.fixture(scope="module")
def exported(new_project):
    """Two schemes exported by one process."""
    return new_project("exported").run("-n0", *EXPORT)


def copy_of(exported, new_project, name):
    """A project of its own with the same exports in it."""
    project = new_project(name)
    shutil.copytree(exported.root, project.folder / "reports" / "tmp")
    return project, project.folder / "reports" / "tmp"


# Only when asked for


@pytest.fixture(scope="module")
def collected(new_project):
    """Collect the cases in a process of its own; return their names and the output."""
    project = new_project("collected")

    def collect(*arguments):
        run = project.run("cases", "--collect-only", "-q", *CPU, *arguments)
        assert run.status == 0, run.output
        return [line for line in run.output.splitlines() if "::" in line], run.output

    return collect


GRID = ("--aq-pairs=wint8_afp16,wint4_aint8", "--aq-granularities=default,w_group64")


def test_without_schemes_asked_for_the_sweep_is_as_before(collected):
    found, output = collected(*GRID)
    assert [name.partition("::")[2].partition("[")[0] for name in found] == [
        *["test_sensitivity"] * 4,
        *["test_structure"] * 4,
    ]
    assert f"8/{8 + len(builtin_schemes())} tests collected" in output
    assert f"({len(builtin_schemes())} deselected)" in output


def test_schemes_that_are_asked_for_run_beside_the_sweep_in_the_order_given(collected):
    found, _ = collected(*GRID, f"--aq-schemes={FULL},{HALF}")
    assert [name for name in found if "scheme" in name] == [
        f"cases/test_schemes.py::test_scheme[{name}]" for name in (FULL, HALF)
    ]
    assert len(found) == 10


def test_schemes_are_runs_of_autoquant_and_no_structure(collected):
    only, _ = collected(*GRID, "--aq-schemes=all", "--gpu-only")
    assert len(only) == 4 + len(builtin_schemes())
    only, _ = collected(*GRID, "--aq-schemes=all", "--structure-only")
    assert {name.partition("::")[2].partition("[")[0] for name in only} == {"test_structure"}


def test_every_scheme_runs_in_exactly_one_shard(collected):
    shards = [collected("--aq-schemes=all", f"--aq-shard={i}/3", *GRID)[0] for i in (1, 2, 3)]
    schemes = [[name for name in shard if "test_scheme[" in name] for shard in shards]
    assert all(schemes)
    assert sorted(chain(*schemes)) == sorted(
        f"cases/test_schemes.py::test_scheme[{name}]" for name in builtin_schemes()
    )


# What is written


def test_a_run_passes_and_writes_each_checkpoint_whole(exported):
    assert exported.status == 0, exported.output
    assert re.search(r"^=+ 2 passed", exported.output, re.MULTILINE)
    for scheme in (HALF, FULL):
        names = {path.name for path in folder_of(exported.root, scheme).iterdir()}
        assert names >= FILES
    schemes = folder_of(exported.root, FULL).parent
    assert {path.name for path in schemes.iterdir()} == {HALF, FULL}


def test_the_manifests_say_what_was_asked_for_and_what_is_in_the_checkpoint(exported):
    found = manifests(exported.root)
    assert {name: m.scheme.amount for name, m in found.items()} == {HALF: 0.5, FULL: 1.0}
    for name, manifest in found.items():
        decided = {n for g in manifest.groups if g.format for n in g.modules}
        with safe_open(folder_of(exported.root, name) / "model.safetensors", "pt") as file:
            scales = {k for k in file.keys() if k.endswith(".weight_scale")}  # noqa: SIM118
        assert scales == {f"{module}.weight_scale" for module in decided}
        assert manifest.export.num_quantized == len(decided)
        assert manifest.export.violations == ()
        assert manifest.export.load == "not tried"
        assert manifest.dataset.size == "small"
        assert manifest.measured.captions == "autoquant-held-out"
    assert [sum(g.format is not None for g in found[n].groups) for n in (HALF, FULL)] == [12, 24]
    assert 0 < found[HALF].measured.kl < found[FULL].measured.kl < 0.1
    assert found[HALF].measured.loss_before == found[FULL].measured.loss_before


@pytest.mark.parametrize("scheme", [HALF, FULL])
def test_the_static_check_of_a_checkpoint_is_clean(exported, new_project, scheme):
    run = new_project("check").harness("check-export", str(folder_of(exported.root, scheme)))
    assert run.status == 0, run.output


def test_two_workers_decide_measure_and_export_the_same(exported, new_project):
    run = new_project("two").run("-n2", *EXPORT)
    assert run.status == 0, run.output
    alone, together = manifests(exported.root), manifests(run.root)
    assert list(together) == [FULL, HALF]
    for name in alone:
        assert measured(together[name]) == measured(alone[name])
        one, other = (folder_of(root, name) for root in (exported.root, run.root))
        assert {k: v for k, v in contents(other).items() if k != "scheme_manifest.json"} == {
            k: v for k, v in contents(one).items() if k != "scheme_manifest.json"
        }


# Again


def test_an_export_that_exists_is_refused_and_stays_untouched(exported, new_project):
    project, root = copy_of(exported, new_project, "again")
    before = contents(root / "tiny-qwen3-vl")
    run = project.run("-n0", *EXPORT)
    assert run.status == pytest.ExitCode.TESTS_FAILED
    for scheme in (HALF, FULL):
        folder = Path("reports", "tmp", "tiny-qwen3-vl", "schemes", scheme)
        said = rf"{folder}: exists; replace it with --aq-replace-export, or move it away"
        assert re.search(said, run.output)
    assert "Traceback" not in run.output
    assert contents(root / "tiny-qwen3-vl") == before


def test_an_export_is_replaced_when_asked_for(exported, new_project):
    project, root = copy_of(exported, new_project, "replaced")
    stale = folder_of(root, HALF) / "stale.txt"
    stale.write_text("of the first export")
    run = project.run("-n0", *EXPORT, "--aq-replace-export", "-k", HALF)
    assert run.status == 0, run.output
    assert not stale.exists()
    assert measured(manifests(root)[HALF]) == measured(manifests(exported.root)[HALF])
    assert contents(folder_of(root, FULL)) == contents(folder_of(exported.root, FULL))
    assert {path.name for path in stale.parent.parent.iterdir()} == {HALF, FULL}


def test_a_run_without_an_export_leaves_an_earlier_one_untouched(exported, new_project):
    project, root = copy_of(exported, new_project, "unexported")
    before = contents(folder_of(root, HALF))
    run = project.run("-n0", *SCHEMES, "-k", HALF)
    assert run.status == 0, run.output
    assert contents(folder_of(root, HALF)) == before


# Mistakes


@pytest.fixture
def usage_error(new_project):
    """Run cases in a process of its own; return what they are refused with, before anything."""
    project = new_project("mistaken")
    (project.folder / "held.txt").write_bytes(b"A dog.\nEin K\xe4fer.\n")

    def said(*arguments):
        run = project.run("cases", *CPU, *arguments)
        assert run.status == pytest.ExitCode.USAGE_ERROR
        assert not (project.folder / "reports").exists()
        return run.output.strip()

    return said


def test_an_unknown_scheme_is_a_usage_error_that_names_the_known_ones(usage_error):
    said = usage_error("--aq-schemes=fp8_autoquant_top5")
    assert said.startswith("ERROR: scheme 'fp8_autoquant_top5' is unknown")
    assert all(name in said for name in builtin_schemes())


@pytest.mark.parametrize(
    ("file", "said"),
    [("held.txt", "is not UTF-8 (byte 12)"), ("away.txt", "does not exist")],
)
def test_held_out_captions_that_are_broken_are_a_usage_error(usage_error, file, said):
    found = usage_error(f"--aq-schemes={HALF}", f"--aq-held-out={file}")
    assert found.startswith(f"ERROR: captions file {file}: {said}")


def test_replacing_without_exporting_is_a_usage_error(usage_error):
    found = usage_error(f"--aq-schemes={HALF}", "--aq-replace-export")
    assert found.startswith("ERROR: --aq-replace-export")
    assert found.endswith("has no effect without --aq-export")


def test_exporting_without_schemes_is_a_usage_error(usage_error):
    assert usage_error("--aq-export") == (
        "ERROR: --aq-export (or its ini option) exports schemes; name them with --aq-schemes"
    )


def test_schemes_of_a_user_run_fail_and_are_skipped_each_for_its_own_reason(
    new_project, user_schemes
):
    project = new_project("user")
    (project.folder / "held.txt").write_text("A dog runs over the beach.\nTwo cats sleep.\n")
    run = project.run(
        *("-n0", "cases/test_schemes.py", *CPU, user_schemes.option, "--aq-export", "-rs"),
        *("--aq-schemes=mine,few_bits,hybrid", "--aq-held-out=held.txt"),
    )
    assert run.status == pytest.ExitCode.TESTS_FAILED
    assert re.search(r"^=+ 2 failed, 1 passed", run.output, re.MULTILINE)
    assert (
        "scheme 'few_bits': effective_bits 7.5 cannot be reached with wfp8_afp8; give at least "
        "8.0012, or a candidate with fewer bits"
    ) in run.output
    assert f"unsupported: {NOT_EXPORTED}" in run.output
    assert "Traceback" not in run.output
    found = manifests(run.root)
    assert list(found) == ["mine"]
    assert found["mine"].measured.captions == "held.txt"
    assert {g.format for g in found["mine"].groups} == {None, "wint8_afp16"}
    assert sum(g.format is not None for g in found["mine"].groups) == 2
    assert {p.name for p in folder_of(run.root, "mine").parent.iterdir()} == {"mine"}
    summary = json.loads((run.root / "summary.json").read_text())
    assert summary["skipped"] == []  # what is asked for by name fails
    failed = {line["case_id"] for line in summary["errors"]}
    assert "tiny-qwen3-vl/schemes/hybrid/small" in failed
    assert summary["lost"] == []


def test_what_cannot_be_exported_fails_before_any_model_is_loaded(new_project, user_schemes):
    project = new_project("unloadable")
    broken = project.folder / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    (broken / "model.safetensors").write_text("no weights")
    run = project.run(
        *("-n0", "cases/test_schemes.py", *CPU, user_schemes.option, "--aq-export", "-rs"),
        *("--aq-schemes=hybrid", "--aq-model=broken"),
    )
    assert run.status == 1, run.output
    assert re.search(r"^=+ 1 failed", run.output, re.MULTILINE)
    assert f"unsupported: {NOT_EXPORTED}" in run.output


def test_for_a_target_what_it_cannot_load_is_left_out_with_the_reason(new_project, user_schemes):
    project = new_project("target")
    run = project.run(
        *("-n0", "cases/test_schemes.py", *CPU, user_schemes.option, "--aq-export", "-rs"),
        *("--aq-schemes=mixture,mine", "--aq-target=vllm"),
    )
    assert run.status == 1, run.output
    assert re.search(r"^=+ 1 failed, 1 passed", run.output, re.MULTILINE)
    reason = "unsupported: --aq-target vllm: vllm cannot load wint8_afp16, exported as W8A16"
    assert reason in run.output
    int4 = "vllm cannot load wint4_afp16-w_group64, exported as W4A16_AWQ"
    assert f"    --aq-target vllm left out: {int4}" in run.output.splitlines()
    (manifest,) = manifests(run.root).values()
    assert (manifest.scheme.target, manifest.scheme.candidates) == ("vllm", ("wfp8_afp8",))
    assert manifest.scheme.left_out == {
        "wint4_afp16-w_group64": ("vllm cannot load wint4_afp16-w_group64, exported as W4A16_AWQ")
    }
    assert manifest.export.violations == ()


def test_measured_divergence_decides_the_bits_of_a_scheme(new_project, user_schemes):
    project = new_project("within")
    run = project.run(
        *("-n0", "cases/test_schemes.py", *CPU, user_schemes.option),
        *("--aq-schemes=within,too_close", "--aq-max-kl=0.5"),
    )
    assert run.status == pytest.ExitCode.TESTS_FAILED
    assert re.search(r"^=+ 1 failed, 1 passed", run.output, re.MULTILINE)
    assert "only the unquantized model stays within a KL divergence of 1e-09 nats" in run.output
    assert "Traceback" not in run.output
    (found,) = manifests(run.root).values()
    assert (found.scheme.measure, found.scheme.amount, found.search.limit) == ("max_kl", 0.02, 0.02)
    assert 0.01 < found.measured.kl <= 0.02
    assert found.uniform.verdict in ("better", "same")
    assert found.interaction.ratio == pytest.approx(1, abs=0.2)
    summary = (run.root / "summary.md").read_text()
    assert "against the uniform scheme" in summary


# Killed

KILLED = """
import os, signal
import pytest_autoquant.export.checkpoint.write as export

written = export._export

def killed(module, folder):
    written(module, folder)
    if len(list(folder.parent.parent.rglob("config.json"))) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

export._export = killed
"""


def test_a_killed_export_leaves_nothing_under_its_name(new_project):
    project = new_project("killed")
    (project.folder / "conftest.py").write_text(KILLED)
    run = project.finished(project.start("-n0", *EXPORT))
    assert run.status == -signal.SIGKILL
    schemes = folder_of(run.root, HALF).parent
    visible = [path.name for path in schemes.iterdir() if not path.name.startswith(".")]
    assert visible == [HALF]
    assert {path.name for path in (schemes / HALF).iterdir()} >= FILES
    assert manifests(run.root)[HALF].export.num_quantized == 18
    summary = json.loads((run.root / "summary.json").read_text())
    assert f"tiny-qwen3-vl/schemes/{FULL}/small" in summary["lost"]


# Failed

FAILS = """
import modelopt.torch.export


def fails(module, export_dir):
    raise RuntimeError("no such export")


modelopt.torch.export.export_hf_checkpoint = fails
"""


def test_failed_export_keeps_the_measured_scheme_and_can_be_run_again(new_project):
    project = new_project("unexported")
    conftest = project.folder / "conftest.py"
    original = conftest.read_text() if conftest.exists() else ""
    conftest.write_text(original + FAILS)
    run = project.run("-n0", *EXPORT, "-k", HALF)
    assert run.status == pytest.ExitCode.TESTS_FAILED
    assert "ModelOpt cannot export this scheme: RuntimeError: no such export" in run.output
    failed = manifests(run.root)[HALF]
    assert failed.export is None
    assert [path.name for path in folder_of(run.root, HALF).iterdir()] == ["scheme_manifest.json"]
    conftest.write_text(original)
    run = project.run("-n0", *EXPORT, "-k", HALF)
    assert run.status == 0, run.output
    exported = manifests(run.root)[HALF]
    assert exported.measured == failed.measured
    assert exported.export.num_quantized == 18
