"""Charts: the Vega-Lite specifications beside this file, drawn in the page and as pictures.

vl-convert holds Vega-Lite and Vega, so pictures need neither a browser nor the network.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import fields
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

CHARTS = (
    *("grid", "layers", "groups", "compare", "stability", "frontier"),
    *("schemes", "budgets"),
)
DATA = "cells"
"""What every chart calls the data that it is given."""

_FOLDER = Path(__file__).parent
_MARKS = re.compile(r'<g class="mark-\w+ role-mark marks"[^>]*?(?:/>|>.*?</g>)', re.DOTALL)
_GRADIENT = re.compile(r"\bgradient_\d+")
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_PICTURE = {"background": "white", "padding": 8}


@cache
def specification(chart: str) -> Mapping[str, Any]:
    """Return a chart as a Vega specification without data."""
    import vl_convert

    source = json.loads((_FOLDER / f"{chart}.vl.json").read_text(encoding="utf-8"))
    compiled: dict[str, Any] = vl_convert.vegalite_to_vega(source, vl_version="6.4")
    for mark in _marks(compiled):
        if mark["type"] == "text":
            mark["interactive"] = False  # what lies below it is there to be clicked
    return compiled


def _marks(scene: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for mark in scene.get("marks", ()):
        yield mark
        yield from _marks(mark)


def picture(chart: str, cells: Sequence[DataclassInstance]) -> str:
    """Draw a chart as SVG on white, for where no scripts run.

    Args:
        cells: dataclasses with the fields that the chart names.
    """
    return _draw(_static(chart), _rows(cells))


def framed_picture(chart: str, cells: Sequence[DataclassInstance]) -> str:
    """Draw a chart of one kind of mark, without legend, for every one of many cases.

    Text takes nearly all the time and is the same for all cases of a model: it is drawn once, and
    every case's marks are put among it. ``score`` is the one field that places no mark.
    """
    rows = _rows(cells)
    frame = _frame(chart, tuple(tuple({**row, "score": None}.items()) for row in rows))
    marks = _MARKS.search(_draw(_marks_alone(chart), rows))
    if marks is None:
        raise ValueError(f"chart {chart!r} has no marks to put into a frame")
    return _MARKS.sub(lambda _: marks[0], frame, count=1)


def _draw(still: Mapping[str, Any], rows: Sequence[Mapping[str, object]]) -> str:
    import vl_convert

    data = [
        {**source, "values": rows} if source["name"] == DATA else source for source in still["data"]
    ]
    drawn: str = vl_convert.vega_to_svg({**still, "data": data})
    return _numbered_anew(drawn) + "\n"


def _numbered_anew(drawn: str) -> str:
    """Vega counts its gradients over the whole process; a picture is to depend on its data."""
    found = dict.fromkeys(_GRADIENT.findall(drawn))
    numbers = {name: f"gradient_{place}" for place, name in enumerate(found)}
    return _GRADIENT.sub(lambda name: numbers[name[0]], drawn)


def _rows(cells: Sequence[DataclassInstance]) -> list[dict[str, object]]:
    names = [field.name for field in fields(cells[0])] if cells else []
    return [{name: _drawable(getattr(cell, name)) for name in names} for cell in cells]


def _drawable(value: object) -> object:
    """Return what XML can hold: Vega's text rendering ends the process over anything else."""
    return _NO_XML.sub("\ufffd", value) if isinstance(value, str) else value


@cache
def _static(chart: str) -> Mapping[str, Any]:
    """Leave out what only the page needs: what a pointer or a screen reader is told of a mark."""
    still = {**deepcopy(specification(chart)), **_PICTURE}
    for mark in _marks(still):
        mark["aria"] = False
        for told in ("tooltip", "description", "ariaRoleDescription", "cursor"):
            mark.get("encode", {}).get("update", {}).pop(told, None)
    return still


@cache
def _marks_alone(chart: str) -> Mapping[str, Any]:
    return {**_static(chart), "axes": [], "legends": []}


@lru_cache(maxsize=64)
def _frame(chart: str, rows: tuple[tuple[tuple[str, object], ...], ...]) -> str:
    return _draw({**_static(chart), "legends": []}, [dict(row) for row in rows])
