"""Reports rebuilt from the records in a folder."""

import json
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from pytest_autoquant.errors import RecordError
from pytest_autoquant.manifests.sensitivity_manifest import dump_manifest
from pytest_autoquant.reports.rebuild import rebuild
from pytest_autoquant.reports.report_model import report_model
from pytest_autoquant.reports.session_report import summary_markdown
from pytest_autoquant.reports.write import write_case

FOLDER = Path("toy/weight-int4-act-int8/a_per_token_dynamic/small")
MANIFEST = FOLDER / "wint4_aint8_autoquant_lm_quant_manifest.json"
MLP = "model.language_model.layers.0.mlp.gate_proj"


def files(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


def damage(path, change):
    """Change a written manifest's JSON in place."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


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


def test_reports_are_rebuilt_where_torch_is_not_installed(tmp_path, session):
    script = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('torch', 'modelopt', 'transformers', 'scipy')))\n"
        "from pathlib import Path\n"
        "from pytest_autoquant.reports.rebuild import rebuild\n"
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
def test_invalid_manifest_is_left_out_and_named(tmp_path, session, manifests, change):
    broken = tmp_path / manifests[1].path
    damage(broken, change)
    results = rebuild(tmp_path)
    (left_out,) = results.left_out
    assert left_out.startswith(f"{broken.relative_to(tmp_path).as_posix()}: ")
    assert set(results.cases) == {m.case.case_id for m in (manifests[0], manifests[2])}
    document = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert document["counts"]["measured"] == 2


def test_truncated_manifest_is_left_out_and_named(tmp_path, session, manifests):
    broken = tmp_path / manifests[0].path
    broken.write_bytes(broken.read_bytes()[:1000])
    results = rebuild(tmp_path)
    assert len(results.cases) == 2
    assert [reason.partition(": is not JSON")[0] for reason in results.left_out] == [
        broken.relative_to(tmp_path).as_posix()
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is not JSON: "),
        (b"[]", "is not a session summary: "),
        (b'{"schema_version": 1, "skipped": [[]]}', "is not a valid session summary: "),
    ],
)
def test_broken_last_summary_is_named_and_replaced(tmp_path, session, content, problem):
    (tmp_path / "summary.json").write_bytes(content)
    results = rebuild(tmp_path)
    assert (len(results.cases), len(results.skips)) == (3, 1)
    (reason,) = results.left_out
    assert reason.startswith(f"summary.json: {problem}")
    assert json.loads((tmp_path / "summary.json").read_text())["counts"]["measured"] == 3


@pytest.mark.parametrize("folder", ["away", "docs"])
def test_folder_without_records_is_refused_and_left_as_it_is(tmp_path, folder):
    (tmp_path / "docs").mkdir()
    for name in ("schemes.md", "summary.json", "index.html", "grid-of-things.svg"):
        (tmp_path / "docs" / name).write_text("somebody's")
    before = files(tmp_path)
    with pytest.raises(RecordError, match=f"^{tmp_path / folder}: holds no manifest; run some"):
        rebuild(tmp_path / folder)
    assert files(tmp_path) == before


def test_second_manifest_of_a_case_is_left_out_by_name(tmp_path, manifest):
    for folder in ("a", "b"):
        write_case(tmp_path / folder, manifest)
    results = rebuild(tmp_path)
    assert [case.manifest for case in results.cases.values()] == [f"a/{MANIFEST.as_posix()}"]
    assert results.left_out == [
        f"b/{MANIFEST.as_posix()}: is the same case as a/{MANIFEST.as_posix()}; delete one"
    ]


@pytest.mark.parametrize("below", ["", "a b", "(old) [1]", "a|b", "<script>", "100%", "x#y?z"])
def test_links_to_reports_survive_odd_folder_names(tmp_path, manifest, render, below):
    folder = tmp_path / below
    folder.mkdir(exist_ok=True)
    (folder / MANIFEST.name).write_text(dump_manifest(manifest))
    results = rebuild(tmp_path)
    assert results.left_out == []
    page = render(summary_markdown(report_model(results)))
    (cases,) = [table for table in page.tables if table[0][0] == "pair"]
    assert [len(row) for row in cases] == [8, 8]
    assert "script" not in page.tags
    assert [unquote(urlsplit(link).path) for link in page.links] == [
        (Path(below) / "layer-sensitivity-report.md").as_posix()
    ]
