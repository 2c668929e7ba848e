"""Specifications and static pictures: SVG that parses, with a mark for every cell."""

import json
import re
import subprocess
import sys
from dataclasses import fields

import pytest
from pytest_autoquant.manifests.outcomes import SkippedCase
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
from pytest_autoquant.reports.session_results import SessionResults
from svg_reading import HOSTILE, SVG, marks, parsed, texts

GREY = "#d9dde3"


def by_id(*cases):
    return SessionResults(cases={case.case_id: case for case in cases})


def grid_of(results, **view):
    return grid_cells(
        results, View(**{"model": "toy", "method": "gradient", "size": "small"} | view)
    )


def cell(row, column, score, **given):
    values = {"pair": f"p{row}", "granularity": f"g{column}", "status": "measured"}
    values |= {"label": "1\n4 bits", "detail": "d", "case": "c"} | given
    return GridCell(row=row, column=column, score=score, **values)


# What the page draws


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
    told_by_the_page = {"detail"}
    assert {one or other for one, other in asked} - added_by_vega - told_by_the_page <= known


# The grid


def test_grid_has_a_mark_per_cell_and_colours_measured_ones(case_of):
    results = by_id(
        *(
            case_of({"g": 10.0 ** -(i + j)}, pair=pair, granularity=granularity)
            for i, pair in enumerate(("wfp8_afp8", "wint8_aint8", "wint4_aint8"))
            for j, granularity in enumerate(("default", "w_group64"))
        )
    )
    for name in ("a", "b"):
        results.add(
            SkippedCase(case_id=f"toy/{name}/default/small/gradient", status="s", reason="r")
        )
    found = marks(picture("grid", grid_of(results)))
    fills = [fill for _, _, fill, _ in found["rect"]]
    assert len(fills) == 8
    assert fills.count(GREY) == 2
    assert len(set(fills)) == 5
    assert len({where for _, where, _, _ in found["rect"]}) == 8
    assert len(found["text"]) == 8


def test_grid_shows_every_pair_granularity_and_label():
    cells = [cell(0, 0, 1.0), cell(0, 1, 2.0, label="2\n5 bits"), cell(1, 1, None, label="lost\n")]
    shown = texts(picture("grid", cells))
    assert {"p0", "p1", "g0", "g1"} <= set(shown)
    drawn = " ".join(text for *_, text in marks(picture("grid", cells))["text"])
    for label in ("1", "4 bits", "2", "5 bits", "lost"):
        assert label in drawn


@pytest.mark.parametrize("score", [0.0, -1.0, None])
def test_score_outside_a_log_scale_is_grey(score):
    rects = marks(picture("grid", [cell(0, 0, 1.0), cell(0, 1, score)]))["rect"]
    assert sorted(fill == GREY for _, _, fill, _ in rects) == [False, True]


@pytest.mark.parametrize("scores", [[1.0], [1.0, 1.0], [1e-300, 1e300], [5e-324, 1.0]])
def test_grid_of_extreme_scores_has_only_finite_coordinates(scores):
    drawn = picture("grid", [cell(0, i, score) for i, score in enumerate(scores)])
    assert len(marks(drawn).get("rect", [])) == len(scores)
    assert "NaN" not in drawn
    assert "undefined" not in drawn
    assert "Infinity" not in drawn


def test_drawing_is_deterministic():
    cells = [cell(0, i, 1.0 + i) for i in range(3)]
    assert picture("grid", cells) == picture("grid", cells)


def test_rows_and_columns_follow_the_vocabulary(case_of):
    pairs, names = ("wfp8_afp8", "wint4_aint8"), ("default", "w_group64", "a_per_token_dynamic")
    results = by_id(*(case_of(pair=p, granularity=g) for p in pairs[::-1] for g in names[::-1]))
    shown = texts(picture("grid", grid_of(results)))
    assert [text for text in shown if text in names] == list(names)
    assert [text for text in shown if text in pairs] == list(pairs)


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:12]))
def test_hostile_text_in_a_grid_is_drawn_as_text(text):
    plain = picture("grid", [cell(0, 0, 1.0)])
    drawn = picture(
        "grid", [cell(0, 0, 1.0, pair=text, granularity=text, label=text, detail=text, case=text)]
    )
    assert {element.tag for element in parsed(drawn).iter()} <= {
        *(element.tag for element in parsed(plain).iter()),
        f"{SVG}tspan",
    }
    assert text in texts(drawn)


DRAWN_ALONE = """
import sys
from xml.etree import ElementTree
from pytest_autoquant.reports.charts.static_svg import framed_picture, picture
from pytest_autoquant.reports.charts.grid import GridCell
from pytest_autoquant.reports.charts.layer_map import LayerCell
text = eval(sys.argv[1])
texts = dict.fromkeys(("pair", "granularity", "label", "detail", "case", "status"), text)
ElementTree.fromstring(picture("grid", [GridCell(row=0, column=0, score=1.0, **texts)]))
cell = LayerCell(row=0, column=0, layer=text, projection=text, score=1.0)
ElementTree.fromstring(framed_picture("layers", [cell]))
"""


@pytest.mark.parametrize(
    "text",
    ["a\0b", "\x1b[2J", "\x08", "\x9b", "\ufffe", "\uffff", "\ud800", "a\tb\nc\rd", ""],
    ids=ascii,
)
def test_text_outside_xml_is_replaced_and_does_not_abort_the_process(text):
    done = subprocess.run(
        [sys.executable, "-c", DRAWN_ALONE, ascii(text)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr[-500:]) == (0, "")


def test_framing_a_chart_without_marks_is_an_error():
    with pytest.raises(ValueError, match="'compare' has no marks"):
        framed_picture("compare", [cell(0, 0, 1.0)])
