"""Files at a report root that this package did not write."""

import pytest
from pytest_autoquant.errors import WriteError
from pytest_autoquant.reports.ownership import refuse_foreign_files
from pytest_autoquant.reports.rebuild import rebuild
from pytest_autoquant.reports.run_comparison import compare_runs
from pytest_autoquant.reports.session_results import SessionResults
from pytest_autoquant.reports.write import (
    write_case,
    write_comparison,
    write_expected,
    write_summary,
)

REPORTS = ("index.html", "summary.md", "summary.json", "schemes.md", "outcomes.jsonl", "grid-a.svg")


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("write", [write_expected, write_summary])
def test_a_session_does_not_replace_a_file_of_somebody_else(tmp_path, write, name):
    (tmp_path / name).write_text("# Mixed-precision schemes")
    with pytest.raises(WriteError, match=f"^{tmp_path / name}: was not written by pytest-auto"):
        write(tmp_path, SessionResults(lost=("a",)))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "# Mixed-precision schemes"


@pytest.mark.parametrize("name", [name for name in REPORTS if name != "summary.json"])
def test_rendering_does_not_replace_a_file_of_somebody_else(tmp_path, manifest, name):
    write_case(tmp_path, manifest)
    (tmp_path / name).write_text("# Mixed-precision schemes")
    with pytest.raises(WriteError, match=f"^{tmp_path / name}: was not written by pytest-auto"):
        rebuild(tmp_path)
    assert (tmp_path / name).read_text() == "# Mixed-precision schemes"


def test_every_report_of_a_session_is_recognized_without_its_summary(tmp_path, session):
    (tmp_path / "summary.json").unlink()
    refuse_foreign_files(tmp_path)
    write_summary(tmp_path, session)
    refuse_foreign_files(tmp_path)


def test_reports_from_before_the_mark_are_replaced_beside_a_summary(tmp_path, session):
    for name in ("index.html", "summary.md", "grid-toy-small.svg"):
        (tmp_path / name).write_text("of an older version")
    write_summary(tmp_path, session)
    assert "of an older version" not in (tmp_path / "grid-toy-small.svg").read_text()


def test_only_marked_pictures_are_deleted_as_outdated(tmp_path, session):
    (tmp_path / "grid-of-things.svg").write_text("<svg/>")
    write_summary(tmp_path, session)
    assert (tmp_path / "grid-of-things.svg").read_text() == "<svg/>"


def test_page_of_two_runs_replaces_an_empty_file_and_its_like_alone(tmp_path, manifest):
    write_case(tmp_path / "run", manifest)
    comparison = compare_runs(tmp_path / "run", tmp_path / "run")
    page = tmp_path / "two.html"
    page.write_text("<p>mine</p>")
    with pytest.raises(WriteError, match=f"^{page}: was not written by .*, or give another file$"):
        write_comparison(page, comparison)
    assert page.read_text() == "<p>mine</p>"
    page.write_bytes(b"")
    write_comparison(page, comparison)
    written = page.read_bytes()
    write_comparison(page, comparison)
    assert page.read_bytes() == written
