"""The layer map of one case: decoder layers across, projections down."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from pytest_autoquant.manifests.case_result import CaseResult, Group
from pytest_autoquant.reports.charts.static_svg import framed_picture
from pytest_autoquant.reports.markdown.elements import RANDOM_WEIGHTS


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlace:
    """Where a layer map shows a group; ``layer`` is ``-`` outside the decoder layers."""

    row: int
    column: int
    layer: str
    projection: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCell:
    """A layer group in a layer map."""

    row: int
    column: int
    layer: str
    projection: str
    score: float | None


def layer_places(ordered: tuple[Group, ...]) -> tuple[LayerPlace, ...]:
    """Return the place of every group, given in module order."""
    rows = {name: row for row, name in enumerate(dict.fromkeys(g.projection for g in ordered))}
    return tuple(
        LayerPlace(
            row=rows[group.projection],
            column=-1 if group.layer is None else group.layer,
            layer="-" if group.layer is None else str(group.layer),
            projection=group.projection,
        )
        for group in ordered
    )


def layer_cells(case: CaseResult) -> tuple[LayerCell, ...]:
    """Return the cells of a case's layer map, in module order.

    A log scale cannot show a score of zero; such a cell has the score None.
    """
    ordered = case.in_module_order
    return tuple(
        LayerCell(
            row=place.row,
            column=place.column,
            layer=place.layer,
            projection=place.projection,
            score=group.score or None,
        )
        for group, place in zip(ordered, layer_places(ordered), strict=True)
    )


def draw_layer_map(case: CaseResult) -> str:
    """Return the layer map as SVG."""
    return _drawn(layer_cells(case), RANDOM_WEIGHTS if case.has_random_weights else "")


@lru_cache(maxsize=64)
def _drawn(cells: tuple[LayerCell, ...], title: str) -> str:
    """Draw a map once for the aliases of a measurement, which are near it in order."""
    return framed_picture("layers", cells, title=title)
