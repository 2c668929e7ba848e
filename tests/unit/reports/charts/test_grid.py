"""The grid of a model, method and size: its views, its order, and what each cell says."""

import re

import pytest
from pytest_autoquant.calibration.sizes import size_order
from pytest_autoquant.grid.case import CaseId
from pytest_autoquant.grid.vocabulary import load_vocabulary
from pytest_autoquant.manifests.outcomes import FailedCase, SkippedCase
from pytest_autoquant.reports.charts.grid import View, grid_cells, grid_file, view_of, views
from pytest_autoquant.reports.session_results import SessionResults

SMALL = View(model="toy", method="gradient", size="small")


def session(*cases, skips=(), errors=(), lost=(), gated=()):
    results = SessionResults(lost=tuple(lost), gated=dict(gated))
    for line in (*cases, *skips, *errors):
        results.add(line)
    return results


def skip(case_id, **given):
    return SkippedCase(case_id=case_id, **{"status": "no-effect", "reason": "ignored"} | given)


def only_cell(results, view=SMALL):
    (cell,) = grid_cells(results, view)
    return cell


def test_views_come_by_model_and_method_and_the_smallest_size_first(case_of):
    results = session(
        *(case_of(size=size) for size in ("large", "odd", "small", "medium")),
        case_of(method="kl_div"),
        case_of(model="atom"),
    )
    assert [(view.model, view.method, view.size) for view in views(results)] == [
        ("atom", "gradient", "small"),
        ("toy", "gradient", "small"),
        ("toy", "gradient", "medium"),
        ("toy", "gradient", "large"),
        ("toy", "gradient", "odd"),
        ("toy", "kl_div", "small"),
    ]


def test_cases_that_were_not_measured_have_a_view():
    results = session(
        skips=[skip("a/p/g/small/gradient")],
        errors=[FailedCase(case_id="b/p/g/small/gradient", problem="x")],
        lost=["c/p/g/small/gradient"],
    )
    assert [view.model for view in views(results)] == ["a", "b", "c"]


def test_invalid_case_id_has_no_cell():
    results = session(skips=[skip("wfp4_afp8"), skip("a/b/c/d")])
    assert views(results) == ()


def test_empty_session_has_no_views():
    assert views(SessionResults()) == ()
    assert grid_cells(SessionResults(), SMALL) == ()


def test_rows_and_columns_follow_the_built_in_vocabulary_and_others_come_after(case_of):
    results = session(
        *(
            case_of(pair=pair, granularity=granularity)
            for pair in ("zebra", "wint8_aint8", "wfp4_afp16", "aardvark")
            for granularity in ("w_group64", "mine", "default")
        )
    )
    cells = grid_cells(results, SMALL)
    assert [(cell.row, cell.column) for cell in cells] == [
        (row, column) for row in range(4) for column in range(3)
    ]
    assert [cell.pair for cell in cells[::3]] == ["wfp4_afp16", "wint8_aint8", "aardvark", "zebra"]
    assert [cell.granularity for cell in cells[:3]] == ["default", "w_group64", "mine"]


def test_every_pair_under_every_granularity_of_the_vocabulary_has_its_own_place(case_of):
    vocabulary = load_vocabulary()
    names = [(pair, name) for pair in vocabulary.pairs for name in vocabulary.granularities]
    results = session(*(case_of(pair=pair, granularity=name) for pair, name in reversed(names)))
    cells = grid_cells(results, SMALL)
    assert [(cell.pair, cell.granularity) for cell in cells] == names


def test_combination_without_a_case_leaves_a_gap(case_of):
    results = session(
        case_of(pair="wint8_aint8", granularity="default"),
        case_of(pair="wint4_aint8", granularity="w_group64"),
    )
    assert [(cell.row, cell.column) for cell in grid_cells(results, SMALL)] == [(0, 0), (1, 1)]


def test_grid_shows_its_own_view_only(case_of):
    results = session(
        case_of(), case_of(size="large"), case_of(method="kl_div"), case_of(model="a")
    )
    assert only_cell(results).case == "toy/wint4_aint8/default/small/gradient"


def test_measured_cell_has_its_score_bits_and_case(case_of):
    cell = only_cell(session(case_of({"a": 0.75, "b": 0.5})))
    assert (cell.status, cell.score, cell.label) == ("measured", 1.25, "1.25\n4.25 bits")
    assert cell.detail == (
        "wint4_aint8, default: measured, total score 1.25 per token; 4.25 bits per weight"
    )
    assert cell.case == "toy/wint4_aint8/default/small/gradient"


def test_alias_names_the_measured_case(case_of):
    cell = only_cell(session(case_of(status="alias", alias_of="toy/other")))
    assert (cell.status, cell.score, cell.label) == ("alias", 1.0, "1\n4.25 bits, alias")
    assert cell.detail == (
        "wint4_aint8, default: alias of toy/other, total score 1 per token; 4.25 bits per weight"
    )


def test_failed_case_shows_no_score_and_why(case_of):
    failed = case_of(status="failed", problems=("scores are not finite", "second"))
    cell = only_cell(session(failed))
    assert (cell.status, cell.score, cell.label) == ("failed", None, "failed\n4.25 bits")
    assert cell.detail == (
        "wint4_aint8, default: failed: scores are not finite; second; 4.25 bits per weight"
    )
    assert cell.case == failed.case_id


def test_case_without_total_or_bits_shows_them_as_missing(case_of):
    cell = only_cell(session(case_of({"a": None}, effective_bits=None)))
    assert (cell.score, cell.label) == (None, "n/a\n")
    assert cell.detail == "wint4_aint8, default: measured, total score n/a per token"


@pytest.mark.parametrize(
    ("bits", "label", "end"),
    [(4.125, "no-effect\n4.125 bits", "; 4.125 bits per weight"), (None, "no-effect\n", "")],
)
def test_skip_shows_its_status_reason_and_bits_and_opens_nothing(bits, label, end):
    cell = only_cell(session(skips=[skip("toy/p/g/small/gradient", effective_bits=bits)]))
    assert (cell.status, cell.score, cell.label, cell.case) == ("no-effect", None, label, "")
    assert cell.detail == f"p, g: skipped, no-effect: ignored{end}"


def test_case_that_raised_shows_its_error(case_of):
    cell = only_cell(
        session(errors=[FailedCase(case_id="toy/p/g/small/gradient", problem="out of memory")])
    )
    assert (cell.status, cell.label, cell.case) == ("failed", "failed\n", "")
    assert cell.detail == "p, g: failed: out of memory"


def test_lost_case_is_labelled():
    cell = only_cell(session(lost=["toy/p/g/small/gradient"]))
    assert (cell.status, cell.score, cell.label, cell.case) == ("lost", None, "lost\n", "")
    assert cell.detail == "p, g: lost: was to run and sent no outcome"


def test_case_that_the_gate_failed_is_labelled(case_of):
    case = case_of()
    cell = only_cell(session(case, gated={case.case_id: "drifted"}))
    assert cell.score == 1.0
    assert cell.detail == (
        "wint4_aint8, default: measured, total score 1 per token; stopped by the gate; "
        "4.25 bits per weight"
    )


def test_model_name_keeps_its_slashes():
    assert CaseId.parse("org/toy/p/g/small/gradient") == CaseId(
        case_id="org/toy/p/g/small/gradient",
        model="org/toy",
        pair="p",
        granularity="g",
        size="small",
        method="gradient",
    )


@pytest.mark.parametrize("case_id", ["", "p", "p/g/small/gradient", "wint4_aint8-default"])
def test_invalid_case_id_is_not_parsed(case_id):
    assert CaseId.parse(case_id) is None


def test_sizes_go_from_the_smallest_and_unknown_ones_follow_by_name():
    assert sorted(["zoo", "large", "medium", "ant", "small"], key=size_order) == [
        *("small", "medium", "large"),
        *("ant", "zoo"),
    ]


def test_case_and_its_name_are_in_the_same_view(case_of):
    case = case_of(size="large", method="kl_div")
    assert view_of(case) == view_of(CaseId.parse(case.case_id))


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a/b", "", "..", "a\0b", "x" * 300])
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
