"""What a sweep over the embedded model leaves behind."""

import json
import math
import re
import shlex
import shutil
import socket
from html import unescape
from pathlib import Path
from xml.etree import ElementTree

import pytest
import pytest_autoquant
from pytest_autoquant.manifests.records.sensitivity_manifest import read_manifest

DATA = Path(pytest_autoquant.__file__).parent / "models" / "data"

MODEL = "tiny-qwen3-vl"
GRID = f"grid-{MODEL}-small.svg"
EMBEDDED = DATA / MODEL
ONE = (
    *("-p", "no:cacheprovider", "cases/test_sensitivity.py", "--aq-device=cpu"),
    *("--aq-pairs=wint8_afp16", "--aq-granularities=default", "--aq-sizes=small"),
)
ONE_FOLDER = f"{MODEL}/weight-int8-act-fp16/default/small"
MEASURED = {
    ("wint8_afp16", "default"),
    ("wint8_afp16", "w_group128"),
    ("wint4_aint8", "default"),
    ("wint4_aint8", "w_per_out_channel"),
    ("wint4_aint8", "a_per_token_dynamic"),
}
ALIASES = {
    ("wint8_afp16", "w_per_out_channel"): ("wint8_afp16", "default"),
    ("wint4_aint8", "w_group128"): ("wint4_aint8", "default"),
}


@pytest.fixture(scope="module")
def manifests(sweep):
    read = map(read_manifest, sweep.root.rglob("*_quant_manifest.json"))
    return {(m.case.pair, m.case.granularity): m for m in read}


def case_id(pair, granularity):
    return f"{MODEL}/{pair}/{granularity}/small/gradient"


def test_summary_says_where_the_time_went(sweep):
    last = json.loads((sweep.root / "summary.json").read_text())["last_run"]
    (process,) = last["timing"]
    phases = process["phases"]
    measuring = {"imports", "model", "probing", "capture", "sweep", "selection", "writing", "other"}
    assert process["process"] == "main"
    assert measuring <= phases.keys()
    assert all(seconds > 0 for seconds in phases.values())
    assert process["seconds"] == pytest.approx(sum(phases.values()))
    assert process["seconds"] == pytest.approx(last["seconds"], rel=0.25)
    assert re.search(r"^time: [\d.]+ s: .*\bsweep [\d.]+.*, other [\d.]+$", sweep.output, re.M)


def test_the_sweep_passes_and_writes_exactly_the_designs_files(sweep):
    assert sweep.status == 0
    expected = {"index.html", "summary.md", "summary.json", "outcomes.jsonl", GRID}
    for pair, granularity in MEASURED | ALIASES.keys():
        weight, activation = re.fullmatch("w(.+)_a(.+)", pair).groups()
        folder = f"{MODEL}/weight-{weight}-act-{activation}/{granularity}/small"
        expected |= {
            f"{folder}/{pair}_autoquant_lm_quant_manifest.json",
            f"{folder}/layer-sensitivity-report.md",
            f"{folder}/layer-sensitivity-report.json",
            f"{folder}/layer-map.svg",
        }
    written = {p.relative_to(sweep.root).as_posix() for p in sweep.root.rglob("*") if p.is_file()}
    assert written == expected


def test_every_manifest_covers_the_language_model_once(manifests):
    assert manifests.keys() == MEASURED | ALIASES.keys()
    for manifest in manifests.values():
        config = json.loads((EMBEDDED / "config.json").read_text())["text_config"]
        num_layers = config["num_hidden_layers"]
        members = [n for group in manifest.layer_sensitivity.values() for n in group.module_names]
        assert sorted(members) == sorted(manifest.layers)
        assert manifest.num_quantized_layers == len(members) == 7 * num_layers
        assert len(manifest.layer_sensitivity) == 4 * num_layers
        assert all("visual" not in name and "lm_head" not in name for name in members)


def test_every_ranking_follows_the_scores(manifests):
    for manifest in manifests.values():
        groups = manifest.layer_sensitivity
        ranked = sorted(groups, key=lambda name: groups[name].rank)
        scores = [groups[name].importance for name in ranked]
        assert [line.name for line in manifest.sensitivity_ranking] == ranked
        assert [groups[name].rank for name in ranked] == list(range(1, len(groups) + 1))
        assert all(math.isfinite(score) and score > 0 for score in scores)
        assert scores == sorted(scores, reverse=True)
        assert manifest.autoquant_state.total_score == pytest.approx(sum(scores))


def test_every_manifest_says_what_was_measured_on_what(manifests):
    for (pair, granularity), manifest in manifests.items():
        assert manifest.case.case_id == case_id(pair, granularity)
        assert manifest.dataset.num_calib_samples == manifest.dataset.num_score_samples == 16
        lengths = manifest.dataset.token_lengths
        assert sum(lengths.values()) == 16
        assert sum(n * count for n, count in lengths.items()) == manifest.dataset.num_tokens
        assert manifest.dataset.num_scored_tokens == manifest.dataset.num_tokens - 16
        assert manifest.environment.device == "cpu"
        assert manifest.run_config.dtype == "float32"
        assert manifest.case.notes == manifest.case.problems == ()
    assert manifests["wint4_aint8", "default"].quantization.effective_bits == 4.125
    assert len({m.dataset.sha256 for m in manifests.values()}) == 1


def test_int4_hurts_more_than_int8_and_the_budget_keeps_the_worst_groups(manifests):
    int8, int4 = manifests["wint8_afp16", "default"], manifests["wint4_aint8", "default"]
    assert int4.autoquant_state.total_score > 10 * int8.autoquant_state.total_score
    assert int8.quantization.effective_bits == 8 + 5 / 24  # a scale of 32 bits per channel
    for manifest in (int8, int4):
        state = manifest.autoquant_state
        assert state.is_satisfied
        assert manifest.quantization.effective_bits < state.effective_bits <= 10
        assert not manifest.layers[top_member(manifest)].selected


def top_member(manifest):
    return manifest.layer_sensitivity[top_group(manifest)].module_names[0]


def top_group(manifest):
    return manifest.sensitivity_ranking[0].name


def test_measured_cases_are_timed_by_phase_and_aliases_are_not(manifests):
    for key, manifest in manifests.items():
        if key in ALIASES:
            assert manifest.timing == {}
        else:
            assert len(manifest.timing.keys() - {"total"}) >= 2
            assert all(0 < seconds < 300 for seconds in manifest.timing.values())
        assert manifest.memory.peak_rss_bytes > 100e6


@pytest.mark.parametrize(("alias", "original"), ALIASES.items())
def test_an_alias_carries_the_scores_of_the_case_it_names(manifests, alias, original):
    copy, source = manifests[alias], manifests[original]
    assert (copy.case.status, copy.case.alias_of) == ("alias", case_id(*original))
    assert (source.case.status, source.case.alias_of) == ("measured", None)
    assert copy.quantization.digest == source.quantization.digest
    assert copy.layer_sensitivity == source.layer_sensitivity
    assert copy.autoquant_state == source.autoquant_state


def test_layer_reports_show_the_manifests_numbers(manifests, sweep):
    for manifest in manifests.values():
        folder = sweep.root / manifest.path.parent
        report = json.loads((folder / "layer-sensitivity-report.json").read_text())
        assert report["case"] == manifest.case.case_id
        assert [(row["rank"], row["score"]) for row in report["groups"]] == [
            (rank, line.importance)
            for rank, line in enumerate(manifest.sensitivity_ranking, start=1)
        ]
        assert report["groups"][-1]["cumulative_share"] == pytest.approx(1)
        top = manifest.sensitivity_ranking[0]
        table = (folder / "layer-sensitivity-report.md").read_text()
        assert re.findall(r"!\[[^]]+\]\((.+)\)", table) == ["layer-map.svg"]
        (row,) = re.findall(r"^\| +1 \| `(\S+)` +\| +\d+ \| +(\S+) ± \S+ \|", table, re.MULTILINE)
        assert row == (top.name.removesuffix(".quant_recipe"), f"{top.importance:.4g}")


def test_summaries_name_every_case_and_their_links_resolve(manifests, sweep):
    summary = json.loads((sweep.root / "summary.json").read_text())
    assert {line["case_id"]: line["status"] for line in summary["cases"]} == {
        m.case.case_id: m.case.status for m in manifests.values()
    }
    assert (summary["counts"]["measured"], summary["counts"]["alias"]) == (5, 2)
    assert (summary["counts"]["failed"], summary["counts"]["structure"]) == (0, 12)
    assert all((sweep.root / line["manifest"]).is_file() for line in summary["cases"])
    text = (sweep.root / "summary.md").read_text()
    links = re.findall(r"(?<!!)\[[^]]*\]\(([^)]+)\)", text)
    assert len(set(links)) == len(MEASURED)
    assert all((sweep.root / link).is_file() for link in links)
    assert re.findall(r"!\[[^]]+\]\(([^)]+)\)", text) == [GRID]
    for alias, original in ALIASES.items():
        assert re.search(rf"`{case_id(*alias)}` +\| `{case_id(*original)}`", text)


def test_the_page_holds_every_case_with_its_numbers_and_its_links_resolve(manifests, sweep):
    page = (sweep.root / "index.html").read_text()
    (data,) = re.findall(r'<script type="application/json" id="data">(.+?)</script>', page)
    shown = {case["id"]: case for case in json.loads(data)["cases"]}
    assert shown.keys() == {m.case.case_id for m in manifests.values()}
    for manifest in manifests.values():
        case = shown[manifest.case.case_id]
        assert (case["status"], case["alias_of"]) == (manifest.case.status, manifest.case.alias_of)
        assert case["total"] == manifest.autoquant_state.total_score
        assert {Path(link).name for link in case["links"].values()} == {
            *("layer-sensitivity-report.md", manifest.path.name)
        }
        assert all((sweep.root / link).is_file() for link in case["links"].values())
    assert not re.search(r"""<(?:link|img|iframe)\b|<script[^>]+\bsrc=""", page.split("<script")[0])


def test_every_picture_is_one(sweep):
    pictures = list(sweep.root.rglob("*.svg"))
    assert len(pictures) == 7 + 1
    for path in pictures:
        drawn = ElementTree.parse(path).getroot()  # noqa: S314
        assert drawn.tag == "{http://www.w3.org/2000/svg}svg"


def test_every_report_says_what_command_wrote_it(sweep, sweep_arguments):
    command = shlex.join(["pytest", "-p", "no:cacheprovider", "-n0", *sweep_arguments])
    assert json.loads((sweep.root / "summary.json").read_text())["command"] == command
    assert f"| `{command}`" in (sweep.root / "summary.md").read_text()
    assert f"<code>{command}</code>" in unescape((sweep.root / "index.html").read_text())


def test_the_terminal_ends_with_counts_aliases_the_worst_groups_and_the_files(sweep, manifests):
    shown = sweep.output[re.search("^=+ autoquant =+$", sweep.output, re.MULTILINE).end() :]
    assert re.search(r"^5 measured, 2 aliases, 0 failed, 5 skipped \(.*\), 12 struc", shown, re.M)
    for alias, original in ALIASES.items():
        assert f"alias  {case_id(*alias)} = {case_id(*original)}" in shown
    ranked = re.findall(r"^ +(\d+)\. +([\d.]+)% +(\S+)$", shown, re.MULTILINE)
    assert [int(place) for place, _, _ in ranked] == list(range(1, 11))
    shares = [mean_share(manifests, f"{group}.quant_recipe") for _, _, group in ranked]
    assert [float(share) for _, share, _ in ranked] == [round(100 * s, 1) for s in shares]
    assert shares == sorted(shares, reverse=True)
    assert re.findall(r"^wrote (\S+)$", shown, re.M) == [
        "reports/tmp/index.html",
        "reports/tmp/summary.md",
        "reports/tmp/summary.json",
    ]
    assert "wrote 7 manifests and layer reports under reports/tmp" in shown


def mean_share(manifests, group):
    measured = [manifests[key] for key in MEASURED]
    shares = [
        m.layer_sensitivity[group].importance / m.autoquant_state.total_score for m in measured
    ]
    return sum(shares) / len(shares)


CAPTIONS = {
    "one word": "--aq-captions={folder}/captions.txt",
    "two words": "--aq-captions {folder}/captions.txt",
    "ini": "-o aq_captions={folder}/captions.txt",
    "ini in one word": "--override-ini=aq_captions={folder}/captions.txt",
    "a short option": "-c{folder}/pytest.ini",
}


@pytest.fixture
def private(project, monkeypatch):
    """A folder whose name, like the user's and the host's, is in no report."""
    monkeypatch.setenv("LOGNAME", "qzprivate")
    monkeypatch.setattr(socket, "gethostname", lambda: "qzprivatehost")
    folder = project.path / "qzprivate"
    shutil.copytree(EMBEDDED, folder / "my-model")
    (folder / "captions.txt").write_text("a dog runs over the grass\n" * 16)
    (folder / "pytest.ini").write_text("[pytest]\naq_captions = captions.txt\n")
    return folder


def check_nothing_is_told(root, project):
    files = [path for path in root.rglob("*") if path.is_file()]
    for path in files:
        text = path.read_text()
        assert "qzprivate" not in text, path
        assert str(project.path) not in text, path
        assert f"{Path.home()}/" not in text, path
    return {path.name for path in files}


@pytest.mark.parametrize("given", CAPTIONS.values(), ids=CAPTIONS)
def test_nothing_written_names_the_user_the_host_or_a_path_of_the_machine(
    project, modelopt, private, given
):
    (*options, cases) = (*ONE[:2], *ONE[3:], str(project.path / ONE[2]))
    result = project.runpytest_inprocess(
        *options, cases, f"--aq-model={private / 'my-model'}", *given.format(folder=private).split()
    )
    result.assert_outcomes(passed=1)
    (root,) = {path.parent for path in project.path.rglob("summary.json")}
    assert check_nothing_is_told(root, project) == {
        *("index.html", "summary.md", "summary.json", "grid-my-model-small.svg"),
        *("layer-sensitivity-report.md", "layer-sensitivity-report.json", "layer-map.svg"),
        "wint8_afp16_autoquant_lm_quant_manifest.json",
    }
    (manifest,) = map(read_manifest, root.rglob("*_quant_manifest.json"))
    assert (manifest.environment.host, manifest.environment.user) == (None, None)
    assert (manifest.model.id, manifest.model.name) == ("my-model", "my-model")
    assert manifest.dataset.name == "captions.txt"


def test_a_report_that_cannot_be_written_is_named_without_a_path_of_the_machine(
    project, modelopt, private
):
    root = project.path / "reports" / "tmp"
    root.mkdir(parents=True)
    (root / MODEL).write_text("a file in its place")
    project.runpytest_inprocess(*ONE).assert_outcomes(failed=1)
    assert len(json.loads((root / "summary.json").read_text())["write_errors"]) == 1
    check_nothing_is_told(root, project)


def test_host_and_user_are_recorded_when_asked_for(project, modelopt, monkeypatch):
    monkeypatch.setenv("LOGNAME", "ada")
    project.runpytest_inprocess(*ONE, "--aq-record-host").assert_outcomes(passed=1)
    (manifest,) = map(read_manifest, (project.path / "reports").rglob("*_quant_manifest.json"))
    assert (manifest.environment.host, manifest.environment.user) == (socket.gethostname(), "ada")


def test_published_reports_lie_under_reports_of_the_rootdir(project, modelopt, monkeypatch):
    monkeypatch.chdir(project.path / "cases")
    arguments = [argument.removeprefix("cases/") for argument in ONE]
    project.runpytest_inprocess(*arguments, "--aq-publish").assert_outcomes(passed=1)
    assert {path.name for path in (project.path / "reports").iterdir()} == {
        MODEL,
        "index.html",
        "summary.md",
        "summary.json",
        GRID,
    }
    assert not (project.path / "cases" / "reports").exists()


def test_report_dir_takes_everything_and_the_state_is_readable_when_asked_for(project, modelopt):
    from modelopt.torch.utils.serialization import safe_load

    arguments = (*ONE, "--aq-report-dir=out/deep", "--aq-save-state")
    project.runpytest_inprocess(*arguments).assert_outcomes(passed=1)
    assert not (project.path / "reports").exists()
    folder = project.path / "out" / "deep" / ONE_FOLDER
    state = safe_load(folder / "wint8_afp16_autoquant_lm_autoquant_state.pt")
    manifest = read_manifest(folder / "wint8_afp16_autoquant_lm_quant_manifest.json")
    for name, group in manifest.layer_sensitivity.items():
        raw = state["candidate_stats"][name]["scores"]
        assert max(raw) == pytest.approx(group.importance * manifest.dataset.num_scored_tokens)
