"""Charts and pictures: SVG that parses, with a mark for every measured cell, in its place."""

import json
import re
import subprocess
import sys
from dataclasses import fields, replace
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest_autoquant.manifests.outcomes import SkippedCase
from pytest_autoquant.reports.charts.grid import GridCell, View, grid_cells, grid_file
from pytest_autoquant.reports.charts.layer_map import LayerCell, draw_layer_map, layer_cells
from pytest_autoquant.reports.charts.pareto import ParetoPoint
from pytest_autoquant.reports.charts.size_stability import StabilityPoint
from pytest_autoquant.reports.charts.static_svg import (
    CHARTS,
    framed_picture,
    picture,
    specification,
)
from pytest_autoquant.reports.session_results import SessionResults

SVG = "{http://www.w3.org/2000/svg}"
GREY = "#d9dde3"
PROJECTIONS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj")
EMPTY = "<script>x</script><img src=x onerror=y>&amp;\"'`"


def parsed(svg):
    return ElementTree.fromstring(svg)  # noqa: S314


def marks(svg):
    """Every mark of the plot itself: where it is, its shape and its fill, kind by kind."""
    found = {}
    for group in parsed(svg).iter(f"{SVG}g"):
        kind = re.fullmatch(r"mark-(\w+) role-mark .*", group.get("class", ""))
        if kind:
            drawn = [
                (mark.get("transform"), mark.get("d"), mark.get("fill"), "".join(mark.itertext()))
                for mark in group
            ]
            found.setdefault(kind[1], []).extend(drawn)
    return found


def places(svg):
    return {where: fill for _, where, fill, _ in marks(svg)["rect"]}


def texts(svg):
    return [text.text for text in parsed(svg).iter(f"{SVG}text") if text.text]


def by_id(*cases):
    return SessionResults(cases={case.case_id: case for case in cases})


@pytest.fixture(scope="session")
def layered(case_of):
    """A model of decoder layers of three projections each, and lm_head: scores layer by layer."""

    def build(scores, **given):
        names = [f"m.layers.{i // 3}.{PROJECTIONS[i % 3]}" for i in range(len(scores) - 1)]
        return case_of(dict(zip((*names, "lm_head"), scores, strict=True)), **given)

    return build


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
def test_every_chart_is_strict_json_whose_data_is_named_and_empty(chart):
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
def test_a_chart_asks_for_no_field_that_its_cells_lack(chart, kind):
    text = json.dumps(specification(chart)["data"]) + json.dumps(specification(chart)["marks"])
    asked = set(re.findall(r'datum\[\\"(\w+)\\"\]|"field": "(\w+)"', text))
    known = {field.name for field in fields(kind)}
    added_by_vega = {"shown", "lowest", "highest", "x"}
    told_by_the_page = {"detail"}
    assert {one or other for one, other in asked} - added_by_vega - told_by_the_page <= known


# The grid


def test_a_grid_has_a_mark_for_every_cell_and_colours_for_the_measured_ones(case_of):
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


def test_a_grid_names_every_pair_and_granularity_and_writes_every_label():
    cells = [cell(0, 0, 1.0), cell(0, 1, 2.0, label="2\n5 bits"), cell(1, 1, None, label="lost\n")]
    shown = texts(picture("grid", cells))
    assert {"p0", "p1", "g0", "g1"} <= set(shown)
    drawn = " ".join(text for *_, text in marks(picture("grid", cells))["text"])
    for label in ("1", "4 bits", "2", "5 bits", "lost"):
        assert label in drawn


@pytest.mark.parametrize("score", [0.0, -1.0, None])
def test_a_score_that_a_log_scale_cannot_show_is_grey(score):
    rects = marks(picture("grid", [cell(0, 0, 1.0), cell(0, 1, score)]))["rect"]
    assert sorted(fill == GREY for _, _, fill, _ in rects) == [False, True]


@pytest.mark.parametrize("scores", [[1.0], [1.0, 1.0], [1e-300, 1e300], [5e-324, 1.0]])
def test_a_grid_of_any_scores_is_drawn_without_numbers_that_are_none(scores):
    drawn = picture("grid", [cell(0, i, score) for i, score in enumerate(scores)])
    assert len(marks(drawn).get("rect", [])) == len(scores)
    assert "NaN" not in drawn
    assert "undefined" not in drawn
    assert "Infinity" not in drawn


def test_the_same_grid_is_the_same_picture_every_time():
    cells = [cell(0, i, 1.0 + i) for i in range(3)]
    assert picture("grid", cells) == picture("grid", cells)


def test_rows_and_columns_are_in_the_order_of_the_cells(case_of):
    pairs, names = ("wfp8_afp8", "wint4_aint8"), ("default", "w_group64", "a_per_token_dynamic")
    results = by_id(*(case_of(pair=p, granularity=g) for p in pairs[::-1] for g in names[::-1]))
    shown = texts(picture("grid", grid_of(results)))
    assert [text for text in shown if text in names] == list(names)
    assert [text for text in shown if text in pairs] == list(pairs)


HOSTILE = (
    EMPTY,
    "a\u2028b\u2029c",
    "x" * 3000,
    "é模\U0001f600",
    "{{7*7}}",
    "\\u0000",
    "](x)",
    "%00",
)


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:12]))
def test_hostile_text_is_drawn_as_text(text):
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
def test_text_that_no_xml_holds_stops_neither_the_picture_nor_the_process(text):
    done = subprocess.run(
        [sys.executable, "-c", DRAWN_ALONE, ascii(text)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr[-500:]) == (0, "")


def test_pictures_are_drawn_of_views_with_a_score_only_and_named_after_them(case_of):
    results = by_id(
        case_of(),
        case_of(size="large"),
        case_of(method="kl_div"),
        case_of({"a": None}, model="broken"),
    )
    results.add(SkippedCase(case_id="skipped/p/g/small/gradient", status="s", reason="r"))
    found = grid_pictures(results)
    assert set(found) == {"grid-toy-small.svg", "grid-toy-large.svg", "grid-toy-small-kl_div.svg"}
    assert all(len(marks(drawn)["rect"]) == 1 for drawn in found.values())


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a/b", "", "..", "a\0b", "x" * 300])
def test_a_grid_is_one_file_in_its_folder(name):
    file = grid_file(View(model=name, method=name, size=name))
    assert re.fullmatch(r"grid-[a-z0-9._-]+\.svg", file)


def test_two_views_are_two_files():
    seen = {
        grid_file(View(model=model, method=method, size=size))
        for model in ("toy", "toy-large")
        for method in ("gradient", "kl_div")
        for size in ("small", "large")
    }
    assert len(seen) == 8


# The layer map


def drawn_whole(case):
    """The layer map as Vega draws it in one go, legend and all."""
    return picture("layers", layer_cells(case))


SCORES = [2.0**-i for i in range(13)]


def test_a_layer_map_has_a_mark_for_every_group(layered):
    found = marks(draw_layer_map(layered(SCORES)))["rect"]
    assert len(found) == 13
    assert len({fill for _, _, fill, _ in found}) == 13
    assert len({where for _, where, _, _ in found}) == 13


def test_a_layer_map_names_projections_and_decoder_layers(layered):
    shown = texts(draw_layer_map(layered(SCORES)))
    assert [text for text in shown if text in (*PROJECTIONS, "lm_head")] == [
        *PROJECTIONS,
        "lm_head",
    ]
    assert [text for text in shown if text in tuple("-0123")] == list("-0123")


def test_the_framed_layer_map_is_what_vega_draws_mark_by_mark(layered):
    case = layered(SCORES)
    assert marks(draw_layer_map(case)) == marks(drawn_whole(case))


@settings(deadline=None, max_examples=25)
@given(
    data=st.data(),
    scores=st.lists(
        st.none() | st.just(0.0) | st.floats(1e-12, 1e12), min_size=7, max_size=7
    ).filter(any),
)
def test_any_framed_layer_map_is_what_vega_draws_mark_by_mark(layered, data, scores):
    other = layered(data.draw(st.permutations(SCORES[:7])))
    draw_layer_map(other)
    case = layered(scores)
    assert marks(draw_layer_map(case)) == marks(drawn_whole(case))


def test_every_case_has_its_own_colours_in_the_frame_that_it_shares(layered):
    up, down = layered(SCORES), layered(SCORES[::-1])
    first, second = places(draw_layer_map(up)), places(draw_layer_map(down))
    assert first.keys() == second.keys()
    assert first != second
    assert places(draw_layer_map(up)) == first


def test_colours_hang_on_the_scores_of_their_own_case_alone(layered):
    once, tenfold = layered(SCORES), layered([1000 * score for score in SCORES])
    assert list(places(draw_layer_map(once))) == list(places(draw_layer_map(tenfold)))
    fills = list(places(draw_layer_map(tenfold)).values())
    assert fills[0] != fills[-1]
    assert len(set(fills)) == 13


@pytest.mark.parametrize("gap", [None, 0.0])
@pytest.mark.parametrize(
    "missing", [{0}, {12}, {0, 1, 2}, {3, 4, 5}, {2, 5, 8, 11}, set(range(12))]
)
def test_a_case_with_gaps_keeps_its_rows_and_columns_in_place(layered, gap, missing):
    scores = [gap if i in missing else score for i, score in enumerate(SCORES)]
    whole, partial = layered(SCORES), layered(scores)
    at = [where for _, where, _, _ in marks(draw_layer_map(whole))["rect"]]
    left = {where for i, where in enumerate(at) if i not in missing}
    coloured = set(places(draw_layer_map(partial)))
    assert coloured == left
    assert texts(draw_layer_map(partial)) == texts(draw_layer_map(whole))


@pytest.mark.parametrize("scores", [[0.0] * 4, [None] * 4])
def test_a_case_without_a_score_above_zero_is_an_empty_map_with_its_names(layered, scores):
    drawn = draw_layer_map(layered(scores))
    assert {*PROJECTIONS, "lm_head"} <= set(texts(drawn))


def test_a_case_without_groups_is_an_empty_map(case_of):
    assert parsed(draw_layer_map(case_of({}))).tag == f"{SVG}svg"


def test_a_small_case_with_equal_scores_is_drawn(layered):
    assert len(marks(draw_layer_map(layered([1.0] * 4)))["rect"]) == 4


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:12]))
def test_hostile_projections_are_drawn_as_text(case_of, text):
    plain = draw_layer_map(case_of({"m.layers.0.a": 1.0, "m.layers.1.a": 2.0}))
    drawn = draw_layer_map(case_of({f"m.layers.0.{text}": 1.0, f"m.layers.1.{text}": 2.0}))
    tags = {element.tag for element in parsed(drawn).iter()}
    assert tags <= {element.tag for element in parsed(plain).iter()}
    assert text in texts(drawn)
    assert len(marks(drawn)["rect"]) == 2


def test_text_that_looks_like_marks_is_not_taken_for_them(case_of):
    text = '<g class="mark-rect role-mark marks">x</g> \\1 \\g<0>'
    names = {f"m.layers.{i}.{text}": 1.0 + i for i in range(3)}
    assert len(marks(draw_layer_map(case_of(names)))["rect"]) == 3


def test_cells_are_the_groups_in_module_order(layered):
    cells = layer_cells(layered([3.0, 0.0, None, 1.0]))
    assert [(c.row, c.column, c.layer, c.projection, c.score) for c in cells] == [
        (0, 0, "0", "self_attn.q_proj", 3.0),
        (1, 0, "0", "self_attn.o_proj", None),
        (2, 0, "0", "mlp.up_proj", None),
        (3, -1, "-", "lm_head", 1.0),
    ]


def test_a_chart_without_marks_cannot_be_framed():
    with pytest.raises(ValueError, match="'compare' has no marks"):
        framed_picture("compare", [replace(cell(0, 0, 1.0))])
