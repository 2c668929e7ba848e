"""Specifications and static pictures: SVG that parses, with a mark for every cell."""

import json
import re
import subprocess
import sys
from dataclasses import fields

import pytest
from builders import results_of
from pytest_autoquant.manifests.records.outcomes import SkippedCase
from pytest_autoquant.reports.charts.grid import GridCell, View, grid_cells
from pytest_autoquant.reports.charts.layer_map import LayerCell
from pytest_autoquant.reports.charts.pareto import ParetoPoint
from pytest_autoquant.reports.charts.size_stability import StabilityPoint
from pytest_autoquant.reports.charts.static_svg import (
    CHARTS,
    framed_picture,
    picture,
    specification,
)
from svg_reading import HOSTILE, SVG, marks, parsed, texts

GREY = "#d9dde3"
SMALL = View(model="toy", method="gradient", size="small")


def cell(row, column, score, **given):
    values = {"pair": f"p{row}", "granularity": f"g{column}", "status": "measured"}
    values |= {"label": "1\n4 bits", "detail": "d", "case": "c"} | given
    return GridCell(row=row, column=column, score=score, **values)


@pytest.mark.parametrize("chart", CHARTS)
def test_specification_is_strict_json_without_data(chart):
    text = json.dumps(specification(chart), allow_nan=False)
    named = [source for source in json.loads(text)["data"] if source["name"] == "cells"]
    assert [source.get("values", []) for source in named] == [[]]
    assert "url" not in {key for source in specification(chart)["data"] for key in source}


@pytest.mark.parametrize(
    ("chart", "kind"),
    [
        ("grid", GridCell),
        ("layers", LayerCell),
        ("frontier", ParetoPoint),
        ("stability", StabilityPoint),
    ],
)
def test_specification_uses_only_fields_of_its_cells(chart, kind):
    text = json.dumps(specification(chart)["data"]) + json.dumps(specification(chart)["marks"])
    asked = set(re.findall(r'datum\[\\"(\w+)\\"\]|"field": "(\w+)"', text))
    known = {field.name for field in fields(kind)}
    added_by_vega = {"shown", "lowest", "highest", "x"}
    added_by_the_page = {"detail"}
    assert {one or other for one, other in asked} - added_by_vega - added_by_the_page <= known


def test_grid_has_a_mark_per_cell_in_order_and_colours_measured_ones(case_of):
    pairs, names = ("wfp8_afp8", "wint8_aint8", "wint4_aint8"), ("default", "w_group64")
    measured = (
        case_of({"g": 10.0 ** -(i + j)}, pair=pair, granularity=name)
        for i, pair in enumerate(pairs)
        for j, name in enumerate(names)
    )
    skips = (
        SkippedCase(case_id=f"toy/{name}/default/small/gradient", status="s", reason="r")
        for name in "ab"
    )
    drawn = picture("grid", grid_cells(results_of(*measured, *skips), SMALL))
    fills = [fill for _, _, fill, _ in marks(drawn)["rect"]]
    assert len(fills) == len({where for _, where, _, _ in marks(drawn)["rect"]}) == 8
    assert fills.count(GREY) == 2
    assert len(set(fills)) == 5
    labels = " ".join(text for *_, text in marks(drawn)["text"])
    assert len(marks(drawn)["text"]) == 8
    assert labels.count("4.25 bits") == 6
    shown = texts(drawn)
    assert [text for text in shown if text in names] == list(names)
    assert [text for text in shown if text in pairs] == list(pairs)


@pytest.mark.parametrize("score", [0.0, -1.0, None])
def test_score_outside_a_log_scale_is_grey(score):
    rects = marks(picture("grid", [cell(0, 0, 1.0), cell(0, 1, score)]))["rect"]
    assert sorted(fill == GREY for _, _, fill, _ in rects) == [False, True]


@pytest.mark.parametrize("scores", [[1.0], [1.0, 1.0], [1e-300, 1e300], [5e-324, 1.0]])
def test_grid_of_extreme_scores_has_only_finite_coordinates(scores):
    cells = [cell(0, i, score) for i, score in enumerate(scores)]
    drawn = picture("grid", cells)
    assert len(marks(drawn).get("rect", [])) == len(scores)
    assert [word for word in ("NaN", "undefined", "Infinity") if word in drawn] == []
    assert picture("grid", cells) == drawn


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:12]))
def test_hostile_text_in_a_grid_is_drawn_as_text(text):
    plain = picture("grid", [cell(0, 0, 1.0)])
    names = dict.fromkeys(("pair", "granularity", "label", "detail", "case"), text)
    drawn = picture("grid", [cell(0, 0, 1.0, **names)])
    tags = {element.tag for element in parsed(plain).iter()} | {f"{SVG}tspan"}
    assert {element.tag for element in parsed(drawn).iter()} <= tags
    assert text in texts(drawn)


DRAWN_ALONE = """
from xml.etree import ElementTree
from pytest_autoquant.reports.charts.static_svg import framed_picture, picture
from pytest_autoquant.reports.charts.grid import GridCell
from pytest_autoquant.reports.charts.layer_map import LayerCell
for text in ("a\\0b", "\\x1b[2J", "\\x08", "\\x9b", "\\ufffe", "\\uffff", "\\ud800", "\\t\\r", ""):
    texts = dict.fromkeys(("pair", "granularity", "label", "detail", "case", "status"), text)
    ElementTree.fromstring(picture("grid", [GridCell(row=0, column=0, score=1.0, **texts)]))
    cell = LayerCell(row=0, column=0, layer=text, projection=text, score=1.0)
    ElementTree.fromstring(framed_picture("layers", [cell]))
"""


def test_text_outside_xml_is_replaced_and_does_not_abort_the_process():
    command = [sys.executable, "-c", DRAWN_ALONE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr[-500:]) == (0, "")


def test_framing_a_chart_without_marks_is_an_error():
    with pytest.raises(ValueError, match="'compare' has no marks"):
        framed_picture("compare", [cell(0, 0, 1.0)])
