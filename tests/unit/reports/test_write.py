"""Reports on disk: written with each case, and rebuilt from manifests alone."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from pytest_autoquant.errors import WriteError
from pytest_autoquant.manifests.case_result import case_result_of
from pytest_autoquant.manifests.outcomes import SkippedCase, StructureCheck
from pytest_autoquant.manifests.sensitivity_manifest import dump_manifest, read_manifest
from pytest_autoquant.reports.session_report import summary_markdown
from pytest_autoquant.reports.session_results import SessionResults
from pytest_autoquant.reports.rebuild import rebuild
from pytest_autoquant.reports.write import write_case, write_layer_reports, write_summary

FOLDER = Path("toy/weight-int4-act-int8/a_per_token_dynamic/small")
MANIFEST = FOLDER / "wint4_aint8_autoquant_lm_quant_manifest.json"
MLP = "model.language_model.layers.0.mlp.gate_proj"


def files(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


def renamed(manifest, granularity):
    case_id = manifest.case.case_id.replace(manifest.case.granularity, granularity)
    return replace(manifest, case=replace(manifest.case, granularity=granularity, case_id=case_id))


def damage(path, change):
    """Change a written manifest's JSON in place."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.fixture
def manifests(manifest):
    """The same measurement under three overlays."""
    return [renamed(manifest, name) for name in ("default", "w_group64", "a_per_token_dynamic")]


@pytest.fixture
def session(tmp_path, manifests):
    """A report folder as a pytest session leaves it: three cases and a skip."""
    results = SessionResults()
    for manifest in manifests:
        write_case(tmp_path, manifest)
        line = case_result_of(manifest)
        results.cases[line.case_id] = line
    skip = SkippedCase(case_id="toy/wfp4_afp8", status="needs-cuda", reason="RuntimeError: no CUDA")
    results.skips[skip.case_id] = skip
    write_summary(tmp_path, results)
    return results


def test_a_case_is_written_as_a_manifest_two_reports_a_picture_and_its_state(tmp_path, manifest):
    path = write_case(tmp_path, manifest, b"state")
    assert path == tmp_path / MANIFEST
    assert read_manifest(path) == manifest
    assert set(files(tmp_path / FOLDER)) == {
        "wint4_aint8_autoquant_lm_quant_manifest.json",
        "wint4_aint8_autoquant_lm_autoquant_state.pt",
        "layer-sensitivity-report.md",
        "layer-sensitivity-report.json",
        "layer-map.svg",
    }
    state = FOLDER / "wint4_aint8_autoquant_lm_autoquant_state.pt"
    assert (tmp_path / state).read_bytes() == b"state"


def test_without_a_state_none_is_written(tmp_path, manifest):
    write_case(tmp_path, manifest)
    assert not list(tmp_path.rglob("*.pt"))


def test_the_summary_is_written_at_the_root_and_links_to_reports_that_exist(
    tmp_path, session, render
):
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {
        "index.html",
        "summary.md",
        "summary.json",
        "grid-toy-small.svg",
    }
    links = render((tmp_path / "summary.md").read_text()).links
    assert len(links) == 3
    assert all((tmp_path / unquote(link)).is_file() for link in links)


def test_every_report_is_rebuilt_byte_for_byte(tmp_path, session):
    written = files(tmp_path)
    for path in tmp_path.rglob("*report.*"):
        path.unlink()
    for name in ("index.html", "summary.md", "grid-toy-small.svg"):
        (tmp_path / name).unlink()
    for path in tmp_path.rglob("layer-map.svg"):
        path.unlink()
    results = rebuild(tmp_path)
    assert results.left_out == []
    assert set(results.cases) == set(session.cases)
    assert files(tmp_path) == written


def test_rebuilding_twice_changes_nothing(tmp_path, session):
    rebuild(tmp_path)
    once = files(tmp_path)
    rebuild(tmp_path)
    assert files(tmp_path) == once


def test_reports_are_rebuilt_where_torch_is_not_installed(tmp_path, session):
    script = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('torch', 'modelopt', 'transformers', 'scipy')))\n"
        "from pathlib import Path\n"
        "from pytest_autoquant.reports.rebuild import rebuild
from pytest_autoquant.reports.write import rebuild\n"
        "print(len(rebuild(Path(sys.argv[1])).cases))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")


def dangling_ranking(document):
    document["layer_sensitivity"].popitem()


def dangling_member(document):
    document["layers"].popitem()


def no_budget(document):
    document["autoquant_state"]["constraints"] = {}


def not_a_number(document):
    document["autoquant_state"]["total_score"] = float("nan")


def infinite_bits(document):
    document["quantization"]["effective_bits"] = float("inf")


def half_a_character(document):
    document["model"]["id"] = "\ud800"


@pytest.mark.parametrize(
    "change",
    [
        dict.clear,
        lambda document: document.update(schema_version=99),
        lambda document: document["case"].update(status="fine"),
        dangling_ranking,
        dangling_member,
        no_budget,
        not_a_number,
        infinite_bits,
        half_a_character,
    ],
)
def test_a_manifest_that_cannot_be_reported_is_left_out_and_named(
    tmp_path, session, manifests, change
):
    broken = tmp_path / manifests[1].path
    damage(broken, change)
    results = rebuild(tmp_path)
    (left_out,) = results.left_out
    assert left_out.startswith(f"{broken.relative_to(tmp_path).as_posix()}: ")
    assert set(results.cases) == {m.case.case_id for m in (manifests[0], manifests[2])}
    document = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert document["counts"]["measured"] == 2


def test_a_truncated_manifest_is_left_out_and_named(tmp_path, session, manifests):
    broken = tmp_path / manifests[0].path
    broken.write_bytes(broken.read_bytes()[:1000])
    results = rebuild(tmp_path)
    assert len(results.cases) == 2
    assert [reason.partition(": is not JSON")[0] for reason in results.left_out] == [
        broken.relative_to(tmp_path).as_posix()
    ]


def test_a_summary_does_not_depend_on_the_order_in_which_cases_arrived(tmp_path, session):
    written = files(tmp_path)
    session.cases = dict(reversed(session.cases.items()))
    write_summary(tmp_path, session)
    assert files(tmp_path) == written


def test_structure_cases_of_the_last_summary_are_kept(tmp_path, session):
    line = StructureCheck(
        pair="wfp8_afp8",
        granularity="default",
        status="supported",
        reason="",
        format_name="F",
        effective_bits=8.0,
        digest="d",
    )
    session.structures[line.pair, line.granularity] = line
    write_summary(tmp_path, session)
    assert rebuild(tmp_path).structures == {("wfp8_afp8", "default"): line}


def test_skips_of_the_last_summary_are_kept_until_their_case_is_measured(
    tmp_path, session, manifests
):
    measured = manifests[0].case.case_id
    stale = SkippedCase(case_id=measured, status="needs-cuda", reason="no CUDA here")
    session.skips[measured] = stale
    write_summary(tmp_path, session)
    results = rebuild(tmp_path)
    assert list(results.skips) == ["toy/wfp4_afp8"]
    assert results.skips["toy/wfp4_afp8"].reason == "RuntimeError: no CUDA"
    assert "no CUDA here" not in (tmp_path / "summary.md").read_text()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is not JSON: "),
        (b"[]", "is not a session summary: "),
        (b'{"schema_version": 1, "skipped": [[]]}', "is not a valid session summary: "),
    ],
)
def test_a_broken_last_summary_is_named_and_replaced(tmp_path, session, content, problem):
    (tmp_path / "summary.json").write_bytes(content)
    results = rebuild(tmp_path)
    assert (len(results.cases), results.skips) == (3, {})
    (reason,) = results.left_out
    assert reason.startswith(f"summary.json: {problem}")
    assert json.loads((tmp_path / "summary.json").read_text())["counts"]["measured"] == 3


@pytest.mark.parametrize("folder", ["away", "empty"])
def test_a_folder_without_manifests_gives_reports_that_say_so(tmp_path, render, folder):
    (tmp_path / "empty").mkdir()
    results = rebuild(tmp_path / folder)
    said = "no *_autoquant_lm_quant_manifest.json is here; run some cases first"
    assert (results.left_out, results.cases) == ([said], {})
    assert set(files(tmp_path)) == {
        f"{folder}/{name}" for name in ("index.html", "summary.md", "summary.json")
    }
    assert said in (tmp_path / folder / "index.html").read_text()
    assert said in render((tmp_path / folder / "summary.md").read_text()).text
    assert json.loads((tmp_path / folder / "summary.json").read_text())["left_out"] == [said]


def test_of_two_manifests_of_one_case_the_second_is_left_out_by_name(tmp_path, manifest):
    for folder in ("a", "b"):
        write_case(tmp_path / folder, manifest)
    results = rebuild(tmp_path)
    assert [case.manifest for case in results.cases.values()] == [f"a/{MANIFEST.as_posix()}"]
    assert results.left_out == [
        f"b/{MANIFEST.as_posix()}: is the same case as a/{MANIFEST.as_posix()}; delete one"
    ]


@pytest.mark.parametrize("below", ["", "a b", "(old) [1]", "a|b", "<script>", "100%", "x#y?z"])
def test_links_lead_to_the_reports_whatever_the_folder_is_called(tmp_path, manifest, render, below):
    folder = tmp_path / below
    folder.mkdir(exist_ok=True)
    (folder / MANIFEST.name).write_text(dump_manifest(manifest))
    results = rebuild(tmp_path)
    assert results.left_out == []
    page = render(summary_markdown(results))
    (cases,) = [table for table in page.tables if table[0][0] == "pair"]
    assert [len(row) for row in cases] == [8, 8]
    assert "script" not in page.tags
    assert [unquote(urlsplit(link).path) for link in page.links] == [
        (Path(below) / "layer-sensitivity-report.md").as_posix()
    ]


def test_a_report_that_cannot_be_written_is_an_error_that_names_it(tmp_path, manifest):
    root = tmp_path / "reports"
    root.write_text("a file in the way")
    first = (root / MANIFEST).with_name("layer-map.svg")
    with pytest.raises(WriteError, match=f"^{first}: cannot be written"):
        write_case(root, manifest)
    with pytest.raises(WriteError, match=f"^{root / 'summary.json'}: cannot be written"):
        write_summary(root, SessionResults())


def test_layer_reports_replace_older_ones(tmp_path, manifest, render):
    write_layer_reports(tmp_path, manifest, case_result_of(manifest))
    state = replace(manifest.autoquant_state, is_satisfied=False, minimum_effective_bits=9.5)
    changed = replace(manifest, autoquant_state=state)
    write_layer_reports(tmp_path, changed, case_result_of(changed))
    page = render((tmp_path / "layer-sensitivity-report.md").read_text())
    assert "the smallest reachable is 9.5," in page.text
    report = json.loads((tmp_path / "layer-sensitivity-report.json").read_text())
    assert report["autoquant_state"]["is_satisfied"] is False
    assert report["groups"][0]["group"] == MLP
