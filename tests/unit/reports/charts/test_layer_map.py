"""The layer map of a case: a mark per group in its place, equal to what Vega draws in one go."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest_autoquant.reports.charts.layer_map import draw_layer_map, layer_cells
from pytest_autoquant.reports.charts.static_svg import picture
from svg_reading import HOSTILE, SVG, marks, parsed, places, texts

PROJECTIONS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj")
SCORES = [2.0**-i for i in range(13)]


@pytest.fixture(scope="session")
def layered(case_of):
    """A model of decoder layers of three projections each, and lm_head: scores layer by layer."""

    def build(scores, **given):
        names = [f"m.layers.{i // 3}.{PROJECTIONS[i % 3]}" for i in range(len(scores) - 1)]
        return case_of(dict(zip((*names, "lm_head"), scores, strict=True)), **given)

    return build


def test_layer_map_has_a_mark_per_group_and_names_projections_and_layers_in_order(layered):
    drawn = draw_layer_map(layered(SCORES))
    rects = marks(drawn)["rect"]
    assert len(rects) == len({where for _, where, _, _ in rects}) == 13
    assert len({fill for _, _, fill, _ in rects}) == 13
    names = [*PROJECTIONS, "lm_head"]
    assert [text for text in texts(drawn) if text in names] == names
    assert [text for text in texts(drawn) if text in tuple("-0123")] == list("-0123")
    assert len(marks(draw_layer_map(layered([1.0] * 4)))["rect"]) == 4


@settings(deadline=None, max_examples=10)
@given(
    data=st.data(),
    scores=st.lists(
        st.none() | st.just(0.0) | st.floats(1e-12, 1e12), min_size=7, max_size=7
    ).filter(any),
)
def test_framed_layer_map_equals_the_plain_picture_mark_by_mark(layered, data, scores):
    other = layered(data.draw(st.permutations(SCORES[:7])))
    draw_layer_map(other)  # shares the frame
    case = layered(scores)
    assert marks(draw_layer_map(case)) == marks(picture("layers", layer_cells(case)))


def test_cases_of_one_frame_keep_their_own_colours(layered):
    up, down = layered(SCORES), layered(SCORES[::-1])
    first, second = places(draw_layer_map(up)), places(draw_layer_map(down))
    assert first.keys() == second.keys()
    assert first != second
    assert places(draw_layer_map(up)) == first


@pytest.mark.parametrize(
    ("missing", "gap"),
    [({0}, None), ({12}, 0.0), ({3, 4, 5}, None), ({2, 5, 8, 11}, 0.0), (set(range(12)), None)],
    ids=str,
)
def test_groups_without_a_score_leave_the_others_in_place(layered, missing, gap):
    scores = [gap if i in missing else score for i, score in enumerate(SCORES)]
    whole, partial = draw_layer_map(layered(SCORES)), draw_layer_map(layered(scores))
    at = [where for _, where, _, _ in marks(whole)["rect"]]
    assert set(places(partial)) == {where for i, where in enumerate(at) if i not in missing}
    assert texts(partial) == texts(whole)


@pytest.mark.parametrize("scores", [[0.0] * 4, [None] * 4])
def test_case_without_a_score_above_zero_is_an_empty_map_with_its_names(layered, scores):
    assert {*PROJECTIONS, "lm_head"} <= set(texts(draw_layer_map(layered(scores))))


def test_case_without_groups_is_an_empty_map(case_of):
    assert parsed(draw_layer_map(case_of({}))).tag == f"{SVG}svg"


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:12]))
def test_hostile_projection_is_drawn_as_text(case_of, text):
    plain = draw_layer_map(case_of({"m.layers.0.a": 1.0, "m.layers.1.a": 2.0}))
    drawn = draw_layer_map(case_of({f"m.layers.0.{text}": 1.0, f"m.layers.1.{text}": 2.0}))
    tags = {element.tag for element in parsed(drawn).iter()}
    assert tags <= {element.tag for element in parsed(plain).iter()}
    assert text in texts(drawn)
    assert len(marks(drawn)["rect"]) == 2


def test_text_that_looks_like_marks_is_not_replaced_by_marks(case_of):
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
