"""The grid of a model, method and size: its views, its order, and what each cell says."""

import re

import pytest
from builders import results_of
from pytest_autoquant.grid.vocabulary import load_vocabulary
from pytest_autoquant.manifests.records.outcomes import FailedCase, SkippedCase
from pytest_autoquant.reports.charts.grid import GridCell, View, grid_cells, grid_file, views

SMALL = View(model="toy", method="gradient", size="small")
CASE = "toy/wint4_aint8/default/small/gradient"
OTHER = "toy/p/g/small/gradient"


def skip(case_id, **given):
    return SkippedCase(case_id=case_id, **{"status": "no-effect", "reason": "ignored"} | given)


def only_cell(*outcomes, **attributes):
    (cell,) = grid_cells(results_of(*outcomes, **attributes), SMALL)
    return cell


def test_views_come_by_model_and_method_and_the_smallest_size_first(case_of):
    results = results_of(
        *(case_of(size=size) for size in ("large", "odd", "small", "medium")),
        case_of(method="kl_div"),
        skip("atom/p/g/small/gradient"),
        FailedCase(case_id="org/b/p/g/small/gradient", problem="x"),
        skip("wfp4_afp8"),
        skip("a/b/c/d"),
        lost=("c/p/g/small/gradient",),
    )
    assert [(view.model, view.method, view.size) for view in views(results)] == [
        ("atom", "gradient", "small"),
        ("c", "gradient", "small"),
        ("org/b", "gradient", "small"),
        ("toy", "gradient", "small"),
        ("toy", "gradient", "medium"),
        ("toy", "gradient", "large"),
        ("toy", "gradient", "odd"),
        ("toy", "kl_div", "small"),
    ]


def test_empty_session_has_no_views():
    assert views(results_of()) == ()
    assert grid_cells(results_of(), SMALL) == ()


def test_every_pair_under_every_granularity_of_the_vocabulary_has_its_own_place(case_of):
    vocabulary = load_vocabulary()
    pairs, columns = (*vocabulary.pairs, "aardvark", "zebra"), (*vocabulary.granularities, "mine")
    names = [(pair, name) for pair in pairs for name in columns]
    results = results_of(*(case_of(pair=pair, granularity=name) for pair, name in reversed(names)))
    cells = grid_cells(results, SMALL)
    assert [(cell.pair, cell.granularity) for cell in cells] == names
    assert [(cell.row, cell.column) for cell in cells] == [
        (row, column) for row in range(len(pairs)) for column in range(len(columns))
    ]


def test_grid_has_the_cases_of_its_view_and_gaps_between_them(case_of):
    results = results_of(
        case_of(pair="wint8_aint8", granularity="default"),
        case_of(pair="wint4_aint8", granularity="w_group64"),
        case_of(size="large"),
        case_of(method="kl_div"),
        case_of(model="a"),
    )
    assert [(cell.row, cell.column) for cell in grid_cells(results, SMALL)] == [(0, 0), (1, 1)]


@pytest.mark.parametrize(
    ("given", "status", "score", "label", "detail"),
    [
        (
            {"scores": {"a": 0.75, "b": 0.5}},
            "measured",
            1.25,
            "1.25\n4.25 bits",
            "measured, total score 1.25 per token; 4.25 bits per weight",
        ),
        (
            {"status": "alias", "alias_of": "toy/other"},
            "alias",
            1.0,
            "1\n4.25 bits, alias",
            "alias of toy/other, total score 1 per token; 4.25 bits per weight",
        ),
        (
            {"status": "failed", "problems": ("scores are not finite", "second")},
            "failed",
            None,
            "failed\n4.25 bits",
            "failed: scores are not finite; second; 4.25 bits per weight",
        ),
        (
            {"scores": {"a": None}, "effective_bits": None},
            "measured",
            None,
            "n/a\n",
            "measured, total score n/a per token",
        ),
    ],
)
def test_cell_of_a_manifest_shows_its_outcome(case_of, given, status, score, label, detail):
    assert only_cell(case_of(**given)) == GridCell(
        row=0,
        column=0,
        pair="wint4_aint8",
        granularity="default",
        status=status,
        score=score,
        label=label,
        detail=f"wint4_aint8, default: {detail}",
        case=CASE,
    )


@pytest.mark.parametrize(
    ("outcomes", "lost", "status", "label", "detail"),
    [
        (
            [skip(OTHER, effective_bits=4.125)],
            (),
            "no-effect",
            "no-effect\n4.125 bits",
            "skipped, no-effect: ignored; 4.125 bits per weight",
        ),
        ([skip(OTHER)], (), "no-effect", "no-effect\n", "skipped, no-effect: ignored"),
        (
            [FailedCase(case_id=OTHER, problem="out of memory")],
            (),
            "failed",
            "failed\n",
            "failed: out of memory",
        ),
        ([], (OTHER,), "lost", "lost\n", "lost: was to run and sent no outcome"),
    ],
)
def test_cell_without_a_manifest_shows_why_and_opens_nothing(outcomes, lost, status, label, detail):
    cell = only_cell(*outcomes, lost=lost)
    assert (cell.status, cell.score, cell.label, cell.case) == (status, None, label, "")
    assert cell.detail == f"p, g: {detail}"


def test_case_that_the_gate_failed_is_labelled(case_of):
    cell = only_cell(case_of(), gated={CASE: "drifted"})
    assert cell.score == 1.0
    assert cell.detail == (
        "wint4_aint8, default: measured, total score 1 per token; stopped by the gate; "
        "4.25 bits per weight"
    )


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "", "..", "a\0b", "x" * 300])
def test_grid_file_is_one_path_component(name):
    file = grid_file(View(model=name, method=name, size=name))
    assert re.fullmatch(r"grid-[a-z0-9._-]+\.svg", file)


def test_every_view_has_a_file_of_its_own():
    seen = {
        grid_file(View(model=model, method=method, size=size))
        for model in ("toy", "toy-large")
        for method in ("gradient", "kl_div")
        for size in ("small", "large")
    }
    assert len(seen) == 8
