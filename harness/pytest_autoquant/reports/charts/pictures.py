"""Small pictures for where no scripts run: code reviews, file browsers, Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_autoquant.manifests.case_result import CaseResult
from pytest_autoquant.reports.case_report import layer_cells
from pytest_autoquant.reports.charts.grid import GridCell, View, grid_cells, views
from pytest_autoquant.reports.charts.static_svg import framed_picture, picture
from pytest_autoquant.reports.session_results import SessionResults
from pytest_autoquant.text import slug

GRID_FILES = "grid-*.svg"
_MOST_OF_A_NAME = 80


def layer_map(case: CaseResult) -> str:
    """Draw one case: decoder layers across, projections down."""
    return framed_picture("layers", layer_cells(case))


def grid_pictures(results: SessionResults) -> dict[str, str]:
    """Draw the grid of every model, method and size that was measured, by file name."""
    return {grid_file(view): picture("grid", cells) for view, cells in pictured(results)}


def pictured(results: SessionResults) -> Iterator[tuple[View, tuple[GridCell, ...]]]:
    """Yield the grids that have a picture: those in which something was measured."""
    for view in views(results):
        cells = grid_cells(results, view)
        if any(cell.score is not None for cell in cells):
            yield view, cells


def grid_file(view: View) -> str:
    """Name the picture of a grid."""
    method = "" if view.method == "gradient" else f"-{slug(view.method)}"
    return f"grid-{slug(view.model)[:_MOST_OF_A_NAME]}-{slug(view.size)}{method}.svg"
