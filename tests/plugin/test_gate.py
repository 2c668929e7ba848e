"""The regression gate: runs against blessed manifests, and what it says of each difference."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest
import pytest_autoquant
from pytest_autoquant.manifests.layout import MANIFEST_SUFFIX
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.slow

DATA = Path(pytest_autoquant.__file__).parent / "models" / "data"

EMBEDDED = DATA / "tiny-qwen3-vl"
MODEL = "finetune"
SELECTION = (
    *("cases/test_sensitivity.py", "-rs", "--aq-device=cpu", "--aq-sizes=small", "--aq-conf=conf"),
    "--aq-granularities=default,mine",
)
PAIRS = ("wint8_afp16", "wint4_afp16", "wint4_aint8")
SPOILT = "model.language_model.layers.2.mlp.down_proj"
CANARY = "import pathlib\ndef test_it(): pathlib.Path('canary').touch()\n"
ORDERS = """
import json, pathlib
import pytest

ORDERS = json.loads(pathlib.Path(__file__).with_name("orders.json").read_text())

def name_of(item):
    return item.name.partition("[")[2].removesuffix("-small]")

def pytest_collection_modifyitems(items):
    for item in items:
        tolerances = ORDERS["tolerances"].get(name_of(item))
        if tolerances is not None:
            item.add_marker(pytest.mark.aq_tolerance(**tolerances))

@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    yield
    if name_of(item) in ORDERS["failing"]:
        pytest.fail("failed on purpose", pytrace=False)
"""
WIDE = {"spearman": 0, "top_ten": 0, "total": 1e9, "group": 1e9, "selected": 1000}
EXACT = {"spearman": 1, "top_ten": 1, "total": 0, "group": 0, "selected": 0}


def case_id(name):
    return f"{MODEL}/{name.replace('-', '/')}/small/gradient"


def manifest_file(root, name):
    pair, granularity = name.split("-")
    weight, activation = re.fullmatch("w(.+)_a(.+)", pair).groups()
    folder = root / MODEL / f"weight-{weight}-act-{activation}" / granularity / "small"
    return folder / f"{pair}{MANIFEST_SUFFIX}"


def write_overlay(folder, block):
    path = folder / "conf" / "quant_granularity" / "mine.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    overrides = f'{{"*weight_quantizer": {{block_sizes: {{-1: {block}}}}}}}'
    path.write_text(f"name: mine\nquant_cfg_overrides: {overrides}\n")


@dataclass(frozen=True)
class Gated:
    """A finished run: what pytest counted, and the gate's words by case as JUnit XML has them."""

    run: object
    reports: Path
    outcomes: dict
    texts: dict

    @property
    def summary(self):
        return json.loads((self.reports / "summary.json").read_text())


class Workshop:
    """A project with two checkpoints of one name, an overlay, captions and baselines."""

    def __init__(self, project):
        self.project = project
        self.folder = folder = project.folder
        (folder / "conftest.py").write_text(ORDERS)
        shutil.copytree(EMBEDDED, folder / "plain" / MODEL)
        spoilt = Path(shutil.copytree(EMBEDDED, folder / "spoilt" / MODEL))
        weights = load_file(spoilt / "model.safetensors")
        weights[f"{SPOILT}.weight"][:, 0] *= 20  # an outlier in every row's scale
        save_file(weights, spoilt / "model.safetensors", metadata={"format": "pt"})
        captions = Path(pytest_autoquant.__file__).parent / "calibration" / "data" / "captions.txt"
        builtin = captions.read_text().splitlines()
        self.captions = [line for line in builtin if line.strip()][:16]

    def run(self, name, *arguments, model="plain", captions=None, block=32, **given):
        """Run with ``tolerances`` by case, ``failing`` cases and ``pairs``, where given."""
        orders = {"tolerances": {}, "failing": []} | given
        pairs = orders.pop("pairs", PAIRS)
        write_overlay(self.folder, block)
        (self.folder / "orders.json").write_text(json.dumps(orders))
        (self.folder / "captions.txt").write_text("\n".join(captions or self.captions))
        run = self.project.run(
            *(*SELECTION, f"--aq-pairs={','.join(pairs)}", f"--aq-model={model}/{MODEL}"),
            *("--aq-captions=captions.txt", f"--aq-report-dir={name}"),
            *(f"--junitxml={name}.xml", *arguments),
        )
        outcomes, texts = {}, {}
        for case in ElementTree.parse(self.folder / f"{name}.xml").iter("testcase"):  # noqa: S314
            (found,) = list(case) or [None]
            key = re.search(r"\[(.+)-small\]", case.get("name"))[1]
            outcomes[key] = "passed" if found is None else found.tag
            if found is not None:
                texts[key] = found.text
        return Gated(run, self.folder / name, outcomes, texts)

    def baselines(self, name):
        """A copy of the blessed manifests, to be changed."""
        return Path(shutil.copytree(self.folder / "blessed", self.folder / name))


@pytest.fixture(scope="module")
def shop(new_project):
    return Workshop(new_project("gate"))


@pytest.fixture(scope="module")
def first(shop):
    """The run that writes the first baselines, into a folder that is not there yet."""
    return shop.run("first", "--aq-baseline=blessed", "--aq-update-baseline")


def edit(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def scale_scores(path, factor):
    def change(document):
        for group in document["layer_sensitivity"].values():
            group["scores"][0] *= factor
            group["importance"] *= factor
            group["caption_scores"] = None
        for ranked in document["sensitivity_ranking"]:
            ranked["importance"] *= factor
        document["autoquant_state"]["total_score"] *= factor
        document["autoquant_state"]["score"] *= factor

    edit(path, change)


@pytest.fixture(scope="module")
def unchanged(shop, first):
    """The same inputs again, against baselines some of which say otherwise."""
    blessed = shop.baselines("edited")
    for name, factor in (
        ("wint8_afp16-default", 1.01),
        ("wint4_afp16-default", 1.01),
        ("wint8_afp16-mine", 1.05),
    ):
        scale_scores(manifest_file(blessed, name), factor)
    manifest_file(blessed, "wint4_afp16-mine").unlink()

    def pretend(document):
        fields = {"pair": "wfp4_afp8", "weight": "fp4", "activation": "fp8"}
        document["case"] |= fields | {"case_id": case_id("wfp4_afp8-default")}

    cannot_run = manifest_file(blessed, "wfp4_afp8-default")
    cannot_run.parent.mkdir(parents=True)
    shutil.copy(manifest_file(blessed, "wint8_afp16-default"), cannot_run)
    edit(cannot_run, pretend)
    return shop.run(
        *("unchanged", "--aq-baseline=edited"),
        pairs=(*PAIRS, "wfp4_afp8"),
        tolerances={
            "wint4_afp16-default": {"total": 0.001},
            "wint8_afp16-mine": {"total": 0.1},
            "wint4_aint8-default": EXACT,
            "wint4_aint8-mine": EXACT,
        },
    )


def test_the_first_baselines_are_the_measured_manifests(shop, first):
    assert first.run.status == 0, first.run.output
    assert first.outcomes == {f"{p}-{g}": "passed" for p in PAIRS for g in ("default", "mine")}
    for name in first.outcomes:
        blessed = manifest_file(shop.folder / "blessed", name)
        assert blessed.read_bytes() == manifest_file(first.reports, name).read_bytes()
    files = [path for path in (shop.folder / "blessed").rglob("*") if path.is_file()]
    assert len(files) == 6


def test_the_same_inputs_pass_even_when_no_drift_at_all_is_allowed(unchanged):
    assert unchanged.outcomes["wint4_aint8-default"] == "passed"
    assert unchanged.outcomes["wint4_aint8-mine"] == "passed"


def test_drift_within_the_tolerance_passes_and_a_marker_narrows_or_widens_it(unchanged):
    assert unchanged.outcomes["wint8_afp16-default"] == "passed"
    assert unchanged.outcomes["wint4_afp16-default"] == "failure"
    text = unchanged.texts["wint4_afp16-default"]
    assert "total score -0.99%, 0.10% allowed (--aq-tol-total)" in text
    assert unchanged.outcomes["wint8_afp16-mine"] == "passed"


def test_a_case_without_a_baseline_fails_and_says_how_to_write_it(unchanged):
    assert unchanged.outcomes["wint4_afp16-mine"] == "failure"
    text = unchanged.texts["wint4_afp16-mine"]
    assert f"{case_id('wint4_afp16-mine')} has no baseline at " in text
    assert f"/edited/{MODEL}/" in text
    assert "write it with --aq-update-baseline" in text
    assert "--aq-baseline-missing skip or write" in text


def test_a_case_that_was_measured_and_is_now_skipped_fails(unchanged):
    assert unchanged.outcomes["wfp4_afp8-default"] == "failure"
    assert unchanged.outcomes["wfp4_afp8-mine"] == "skipped"
    text = unchanged.texts["wfp4_afp8-default"]
    assert "is skipped but has a baseline: needs-cuda: RuntimeError:" in text
    assert f"/edited/{MODEL}/weight-fp4-act-fp8/default/small/" in text


def test_the_exit_status_the_counts_and_the_summary_agree_with_the_gate(unchanged):
    assert unchanged.run.status == pytest.ExitCode.TESTS_FAILED
    outcomes = list(unchanged.outcomes.values())
    assert [outcomes.count(which) for which in ("passed", "skipped")] == [4, 1]
    assert len(outcomes) == 8
    stopped = ("wfp4_afp8-default", "wint4_afp16-default", "wint4_afp16-mine")
    assert list(unchanged.summary["gated"]) == [case_id(name) for name in stopped]
    assert unchanged.summary["counts"]["gated"] == 3
    for name in stopped:
        assert f"  gate   {case_id(name)}" in unchanged.run.output
        assert manifest_file(unchanged.reports, name).exists() == ("wfp4" not in name)
    assert "Traceback" not in unchanged.run.output


@pytest.fixture(scope="module")
def refused(shop, first):
    """One layer's weights and the overlay changed, nothing allowed, over two workers."""
    return shop.run("refused", "--aq-baseline=blessed", "-n2", model="spoilt", block=128)


def test_other_weights_and_a_redefined_overlay_are_refused_by_name(refused):
    assert refused.run.status == pytest.ExitCode.TESTS_FAILED
    assert set(refused.outcomes.values()) == {"failure"}
    assert len(refused.outcomes) == refused.summary["counts"]["gated"] == 6
    for name, text in refused.texts.items():
        what = "the baseline was measured with other inputs"
        fields = "model,config" if name.endswith("-mine") else "model"
        (line,) = re.findall(rf"^{case_id(name)}: {what}: (.+)$", text, re.MULTILINE)
        assert [part.split()[0] for part in line.split("; ")] == fields.split(",")
        assert f"to compare nevertheless, pass --aq-baseline-allow {fields}\n" in text
        assert "drifted" not in text
        assert f"/{manifest_file(Path('blessed'), name)}\n" in text
        assert f"/{manifest_file(Path('refused'), name)}\n" in text
        assert "accept it with --aq-update-baseline" in text
    assert "Traceback" not in refused.run.output


@pytest.fixture(scope="module")
def drifted(shop, first):
    """The same with both allowed; two cases have no baseline and may be skipped for that."""
    blessed = shop.baselines("two-missing")
    for name in ("wint4_aint8-mine", "wint8_afp16-mine"):
        manifest_file(blessed, name).unlink()
    return shop.run(
        *("drifted", "--aq-baseline=two-missing", "--aq-baseline-allow=model,config"),
        "--aq-baseline-missing=skip",
        model="spoilt",
        block=128,
        tolerances={"wint8_afp16-default": WIDE, "wint4_aint8-default": {"totl": 1}},
        failing=["wint8_afp16-mine"],
    )


def test_drift_names_the_layer_both_files_the_tolerances_and_how_to_accept_it(drifted):
    assert drifted.run.status == pytest.ExitCode.TESTS_FAILED
    assert drifted.outcomes["wint4_afp16-default"] == "failure"
    text = drifted.texts["wint4_afp16-default"]
    name = "wint4_afp16-default"
    assert text.startswith(f"{case_id(name)} drifted from its baseline:\n")
    worst = re.findall(
        r"^  (\S+): (\S+) -> (\S+) \(([+-][\d.]+)%\), rank (\d+) -> (\d+)", text, re.M
    )
    assert len(worst) == 5
    layer, before, after, percent, rank_before, rank_after = worst[0]
    assert layer == SPOILT
    groups = [
        json.loads(manifest_file(root, name).read_text())["layer_sensitivity"]
        for root in (drifted.run.folder / "two-missing", drifted.reports)
    ]
    old, new = (found[f"{SPOILT}.quant_recipe"] for found in groups)
    assert (before, after) == (f"{old['importance']:.4g}", f"{new['importance']:.4g}")
    assert float(percent) == round(100 * (new["importance"] / old["importance"] - 1), 2) > 100
    assert (int(rank_before), int(rank_after)) == (old["rank"], new["rank"])
    assert re.search(r"total score \+\d+\.\d\d%, 2.00% allowed \(--aq-tol-total\)", text)
    assert re.search(r"\d+ of 24 groups drifted by more than 10.00%, up to [\d.]+% \(--", text)
    assert f"/{manifest_file(Path('two-missing'), name)}\n" in text
    assert f"/{manifest_file(Path('drifted'), name)}\n" in text
    assert "if the change is right, accept it with --aq-update-baseline" in text
    assert text.strip().splitlines()[0] in drifted.run.output


def test_a_marker_can_widen_every_tolerance(drifted):
    assert drifted.outcomes["wint8_afp16-default"] == "passed"


def test_a_wrong_name_in_a_marker_fails_the_case_with_one_message(drifted):
    message = (
        "marker aq_tolerance: totl=1 is not allowed; known names: group, selected, spearman, "
        "top_ten, total; each value must be a finite number of at least 0, and an integer for "
        "selected"
    )
    assert drifted.outcomes["wint4_aint8-default"] == "error"
    assert drifted.texts["wint4_aint8-default"].splitlines()[0] == message
    assert message in drifted.run.output
    assert "Traceback" not in drifted.run.output


def test_an_allowed_redefinition_is_compared_and_drifts(drifted):
    assert drifted.outcomes["wint4_afp16-mine"] == "failure"
    text = drifted.texts["wint4_afp16-mine"]
    assert "24 of 24 groups drifted by more than 10.00%" in text


def test_a_case_without_a_baseline_is_skipped_on_demand_and_still_measured(drifted):
    assert drifted.outcomes["wint4_aint8-mine"] == "skipped"
    assert f"{case_id('wint4_aint8-mine')} has no baseline" in drifted.run.output
    assert manifest_file(drifted.reports, "wint4_aint8-mine").is_file()


def test_a_case_that_failed_by_itself_stays_failed_when_its_comparison_is_skipped(drifted):
    assert drifted.outcomes["wint8_afp16-mine"] == "failure"
    assert "failed on purpose" in drifted.texts["wint8_afp16-mine"]


def test_every_case_that_the_gate_failed_is_counted(drifted):
    failed = ("wint4_afp16-default", "wint4_afp16-mine")
    assert [drifted.outcomes[name] for name in failed] == ["failure"] * 2
    assert drifted.summary["gated"].keys() == {case_id(name) for name in failed}


def test_another_caption_is_refused(shop, first):
    captions = [*shop.captions[:-1], "two cats sleep on a chair"]
    other = shop.run("other", "--aq-baseline=blessed", captions=captions, pairs=PAIRS[:1])
    assert other.run.status == pytest.ExitCode.TESTS_FAILED
    assert other.outcomes == {"wint8_afp16-default": "failure", "wint8_afp16-mine": "failure"}
    for text in other.texts.values():
        assert "the baseline was measured with other inputs: captions " in text
        assert "to compare nevertheless, pass --aq-baseline-allow captions\n" in text


def test_an_accepted_change_passes_next_time_also_with_the_captions_in_another_order(shop, first):
    accepted = shop.baselines("accepted")
    before = {path: path.read_bytes() for path in accepted.rglob("*.json")}
    update = shop.run("update", "--aq-baseline=accepted", "--aq-update-baseline", model="spoilt")
    assert update.run.status == 0, update.run.output
    assert set(update.outcomes.values()) == {"passed"}
    assert set(accepted.rglob("*.json")) == before.keys()
    assert [path for path, content in before.items() if path.read_bytes() == content] == []
    removed = manifest_file(accepted, "wint4_aint8-mine")
    removed.unlink()
    again = shop.run(
        *("again", "--aq-baseline=accepted", "--aq-baseline-missing=write"),
        model="spoilt",
        captions=shop.captions[::-1],
    )
    assert again.run.status == 0, again.run.output
    assert set(again.outcomes.values()) == {"passed"}
    assert again.summary["gated"] == {}
    assert removed.read_bytes() == manifest_file(again.reports, "wint4_aint8-mine").read_bytes()


def newer(path):
    edit(path, lambda document: document.update(schema_version=99))


def truncate(path):
    path.write_bytes(path.read_bytes()[:1000])


def duplicate(path):
    shutil.copytree(path.parents[3], path.parents[4] / "elsewhere")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (truncate, ["is not JSON", MANIFEST_SUFFIX]),
        (newer, ["written by a newer version: schema 99", MANIFEST_SUFFIX, "upgrade"]),
        (duplicate, ["two baselines of ", "/elsewhere/", "delete one"]),
        (
            lambda path: shutil.rmtree(path.parents[4]),
            ["/bad: the folder has no manifest"],
        ),
        (lambda path: path.unlink(), ["the folder has no manifest", "--aq-update-baseline"]),
    ],
    ids=["truncated", "newer", "two of one case", "no folder", "empty"],
)
def test_a_baseline_folder_that_cannot_be_read_is_a_usage_error(project, shop, first, spoil, words):
    source = manifest_file(first.reports, "wint8_afp16-default")
    path = project.path / "bad" / source.relative_to(first.reports)
    path.parent.mkdir(parents=True)
    shutil.copy(source, path)
    spoil(path)
    project.makepyfile(test_canary=CANARY)
    result = project.runpytest_inprocess(
        "-p", "no:cacheprovider", "test_canary.py", "cases", "--aq-baseline=bad"
    )
    message = result.stderr.str().strip()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "Traceback" not in result.stdout.str() + message
    assert message.startswith("ERROR: ")
    assert "\n" not in message
    assert [word for word in words if word not in message] == []
    assert not (project.path / "canary").exists()
    assert [path for path in (project.path / "reports").rglob("*") if path.is_file()] == []


def test_the_gates_words_in_the_reports_name_no_folder_of_the_machine(shop, first):
    reports = shop.folder / "moved"
    gated = shop.run(
        *("moved", f"--aq-baseline={shop.folder / 'blessed'}", f"--aq-report-dir={reports}"),
        model="spoilt",
        pairs=PAIRS[:1],
    )
    assert gated.summary["counts"]["gated"] == len(gated.summary["gated"]) == 2
    for path in (path for path in reports.rglob("*") if path.is_file()):
        assert str(shop.folder) not in path.read_text(), path
