"""Which files at a report root this package wrote; others are neither replaced nor deleted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pytest_autoquant.errors import RecordError, WriteError
from pytest_autoquant.manifests.layout import MANIFEST_SUFFIX
from pytest_autoquant.manifests.records.outcome_log import OUTCOME_LOG
from pytest_autoquant.manifests.records.session_summary import SUMMARY_JSON, read_summary
from pytest_autoquant.reports.charts.grid import GRID_FILES
from pytest_autoquant.reports.markdown.scheme.report import SCHEMES_MARKDOWN
from pytest_autoquant.reports.markdown.session.report import SUMMARY_MARKDOWN
from pytest_autoquant.reports.page.render import PAGE

#: A comment in the page, in Markdown and in SVG; the page's template repeats it.
MARK = "<!-- written by pytest-autoquant -->"

_MARKED = (PAGE, SUMMARY_MARKDOWN, SCHEMES_MARKDOWN)

#: How every line of an outcome log begins.
_LOGGED = b'{"schema_version"'

#: Folders between a report root and a manifest: model, dtypes, granularity, size.
_IN_LAYOUT = f"*/weight-*-act-*/*/*/*{MANIFEST_SUFFIX}"


def marked(content: str) -> str:
    """Return Markdown or SVG with a last line by which the file is recognized."""
    return f"{content.rstrip()}\n\n{MARK}\n"


def is_marked(path: Path) -> bool:
    """Return whether a file can be read and carries the mark."""
    try:
        return MARK.encode() in path.read_bytes()
    except OSError:
        return False


def refuse_foreign_files(root: Path) -> None:
    """Check that no report would replace a file of somebody else.

    A root with a session summary of ours is a report folder, whatever wrote its other files:
    reports from before the mark have none.

    Raises:
        WriteError: a file has the name of a report and this package did not write it.
    """
    if _has_summary(root):
        return
    foreign = next(_foreign_files(root), None)
    if foreign is not None:
        raise _foreign(foreign, "choose another folder, such as with --aq-report-dir")


def refuse_foreign_page(path: Path) -> None:
    """Check that a page may be written to a file that the user names.

    Raises:
        WriteError: the file has content that this package did not write.
    """
    if path.is_file() and path.stat().st_size and not is_marked(path):
        raise _foreign(path, "give another file")


def _foreign(path: Path, advice: str) -> WriteError:
    return WriteError(
        f"{path}: was not written by pytest-autoquant and would be replaced; move it, or {advice}"
    )


def _has_summary(root: Path) -> bool:
    """Return whether the root has a summary of ours; a damaged one beside manifests counts."""
    path = root / SUMMARY_JSON
    if not path.is_file():
        return False
    try:
        read_summary(path)
    except RecordError:
        return _has_records(root)
    return True


def _has_records(root: Path) -> bool:
    """Return whether the root has a log or a report of ours, or a manifest in its place."""
    return (
        _is_log(root / OUTCOME_LOG)
        or any(is_marked(root / name) for name in _MARKED)
        or next(root.glob(_IN_LAYOUT), None) is not None
    )


def _foreign_files(root: Path) -> Iterator[Path]:
    if (root / SUMMARY_JSON).is_file():
        yield root / SUMMARY_JSON
    log = root / OUTCOME_LOG
    if log.is_file() and log.stat().st_size and not _is_log(log):
        yield log
    pictures = sorted(root.glob(GRID_FILES))
    for path in (*(root / name for name in _MARKED), *pictures):
        if path.is_file() and not is_marked(path):
            yield path


def _is_log(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(len(_LOGGED)) == _LOGGED
    except OSError:
        return False
