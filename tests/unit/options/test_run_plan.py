"""The run plan: which cases and schemes a run is asked for, and which of them a shard takes."""

from itertools import chain

import pytest
from builders import run_plan
from pytest_autoquant.allocation.scheme import builtin_schemes
from pytest_autoquant.errors import CaptionError, ModelError, UsageError

TWO_SCHEMES = ("fp8_autoquant_full", "fp8_autoquant_top25")


def test_grid_is_every_pair_under_every_granularity_in_every_size():
    plan = run_plan()
    assert (len(plan.combinations), len(plan.cases)) == (24 * 10, 24 * 10 * 3)
    assert len({case.case_id for case in plan.cases}) == 720
    assert plan.cases[0].case_id == "tiny-qwen3-vl/wfp4_afp16/default/small/gradient"


def test_options_narrow_the_grid_and_sizes_keep_their_order():
    plan = run_plan(
        pairs="wint8_aint8 wint4_aint8",
        granularities="w_group64,default",
        sizes="medium,small",
        method="kl_div",
        weights="random",
    )
    assert [case.case_id for case in plan.cases] == [
        f"tiny-qwen3-vl-random/{pair}/{granularity}/{size}/kl_div"
        for size in ("small", "medium")
        for pair in ("wint8_aint8", "wint4_aint8")
        for granularity in ("default", "w_group64")
    ]


def test_model_name_is_that_of_cases_and_schemes():
    plan = run_plan(model_name="mine", schemes="fp8_autoquant_full")
    assert plan.cases[0].case_id == "mine/wfp4_afp16/default/small/gradient"
    assert plan.schemes[0].case_id == "mine/schemes/fp8_autoquant_full/large"
    assert run_plan(model_name="mine", weights="random").source.name == "mine-random"


@pytest.mark.parametrize(
    ("values", "error", "part"),
    [
        ({"model_name": "tiny-qwen2.5-vl"}, UsageError, "an embedded or registered model"),
        ({"pairs": "wint4_aint9"}, UsageError, "did you mean 'wint4_aint8'"),
        ({"granularities": "w_group96"}, UsageError, "w_group64"),
        ({"sizes": "huge"}, UsageError, "small, medium, large"),
        ({"model": "no such model"}, UsageError, "tiny-qwen3-vl"),
        ({"model": "."}, ModelError, "has no config.json"),
        ({"captions": "away.txt"}, CaptionError, "away.txt: does not exist"),
        ({"conf": "away"}, UsageError, "away"),
        ({"schemes": "all,fp8_autoquant_ful"}, UsageError, "'fp8_autoquant_ful'"),
        ({"schemes": "all", "held_out": "away.txt"}, CaptionError, "away.txt: does not exist"),
    ],
)
def test_name_or_file_that_cannot_be_used_is_refused(tmp_path, monkeypatch, values, error, part):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error) as caught:
        run_plan(tmp_path, **values)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("values", "root"),
    [
        ({}, "reports/tmp"),
        ({"publish": True}, "reports"),
        ({"report_dir": "/elsewhere"}, "/elsewhere"),
    ],
)
def test_report_folder_is_below_the_root_directory_unless_it_is_named(tmp_path, values, root):
    assert run_plan(tmp_path, **values).root == tmp_path / root


def test_reports_are_not_compared_with_themselves(tmp_path):
    same = {"report_dir": str(tmp_path / "out"), "baseline": str(tmp_path / "x" / ".." / "out")}
    with pytest.raises(UsageError, match="every case would be compared with itself"):
        run_plan(tmp_path, **same)
    assert run_plan(tmp_path, **same, update_baseline=True).root == tmp_path / "out"


# Cases by name


def test_case_is_named_by_its_test_id_whatever_the_options_select():
    plan = run_plan(pairs="wfp8_afp8", sizes="small", method="kl_div")
    case = plan.case_named("wint4_aint8-w_group64-large")
    assert case.case_id == "tiny-qwen3-vl/wint4_aint8/w_group64/large/kl_div"
    every = {case.test_id: case for case in run_plan(method="kl_div").cases}
    assert every["wint4_aint8-w_group64-large"] == case


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("", "case '' is unknown; give PAIR-GRANULARITY-SIZE, such as wint4_aint8-w_group64-small"),
        ("wint4_aint8", "give PAIR-GRANULARITY-SIZE"),
        ("wint4_aint8-default", "give PAIR-GRANULARITY-SIZE"),
        ("wint4_aint9-default-small", "did you mean 'wint4_aint8'"),
        ("-default-small", "''"),
        ("wint4_aint8-w_group96-small", "'w_group96'"),
        ("wint4_aint8-default-huge", "small, medium, large"),
        ("wint4_aint8-default-small-gradient", "'small-gradient'"),
    ],
)
def test_unknown_case_name_is_refused(name, part):
    with pytest.raises(UsageError) as caught:
        run_plan().case_named(name)
    assert part in str(caught.value)


# Shards and workers


@pytest.mark.parametrize("count", [1, 2, 5])
def test_shards_take_every_case_and_combination_exactly_once(count):
    plans = [run_plan(shard=f"{i}/{count}") for i in range(1, count + 1)]
    cases = plans[0].cases
    taken = [list(plan.assign(cases, workers=1).parts) for plan in plans]
    assert sorted(chain(*taken)) == sorted(case.case_id for case in cases)
    assert all(taken)
    takers = [sum(p.takes_combination(c) for p in plans) for c in plans[0].combinations]
    assert takers == [1] * 240


def test_assignment_keeps_cases_of_other_shards_as_selected():
    plan = run_plan(shard="2/3")
    assignment = plan.assign(plan.cases, workers=4)
    own = [case for case in plan.cases if assignment.holds(case)]
    assert assignment.selected == plan.cases
    assert list(assignment.parts) == [case.case_id for case in own]
    assert {*assignment.parts.values()} == {0, 1, 2, 3}


def test_case_that_is_collected_twice_is_assigned_once():
    plan = run_plan()
    first, second = plan.cases[:2]
    assignment = plan.assign([first, second, first], workers=1)
    assert assignment.selected == (first, second)
    assert assignment.parts == {first.case_id: 0, second.case_id: 0}


# Schemes


def test_schemes_are_the_named_ones_on_the_largest_selected_size():
    plan = run_plan(schemes=",".join(TWO_SCHEMES), sizes="small,medium", pairs="wint8_aint8")
    assert [case.case_id for case in plan.schemes] == [
        f"tiny-qwen3-vl/schemes/{name}/medium" for name in TWO_SCHEMES
    ]
    assert [c.test_id for c in plan.schemes[0].candidates] == ["wfp8_afp8-default"]
    assert all(plan.takes_scheme(case) and plan.is_named(case) for case in plan.schemes)
    assert plan.held_out is not None


def test_all_selects_every_scheme_and_names_none():
    plan = run_plan(schemes=f"all,{TWO_SCHEMES[0]}")
    assert [case.test_id for case in plan.schemes] == list(builtin_schemes())
    assert all(plan.takes_scheme(case) for case in plan.schemes)
    assert not any(plan.is_named(case) for case in plan.schemes)


def test_no_scheme_is_taken_unless_one_is_asked_for():
    plan = run_plan()
    assert len(plan.schemes) == len(builtin_schemes())
    assert not any(plan.takes_scheme(case) for case in plan.schemes)
    assert plan.held_out is None


@pytest.mark.parametrize("count", [1, 2, 9])
def test_shards_take_every_scheme_exactly_once(count):
    plans = [run_plan(schemes="all", shard=f"{i}/{count}") for i in range(1, count + 1)]
    takers = [sum(p.takes_scheme(case) for p in plans) for case in plans[0].schemes]
    assert takers == [1] * len(builtin_schemes())


# The bit budget


def budget(bits, *names, **values):
    plan = run_plan(effective_bits=bits, **values)
    plan.check_budget([plan.case_named(name) for name in names])


def test_budget_below_every_selected_case_is_refused_with_the_least_that_works():
    with pytest.raises(UsageError) as caught:
        budget("4", "wint4_aint8-w_group64-small", "wint4_aint8-default-small")
    assert str(caught.value) == (
        "--aq-effective-bits 4: too small for every selected case; the least is 4.125 bits per "
        "weight: give at least that, or select a pair with fewer bits"
    )


@pytest.mark.parametrize(
    ("bits", "names"),
    [
        ("4.125", ["wint4_aint8-default-small"]),
        ("5", ["wint8_aint8-default-small", "wint4_aint8-w_group64-small"]),
        ("0.5", []),
    ],
)
def test_budget_that_a_selected_case_can_reach_is_accepted(bits, names):
    budget(bits, *names)


def test_budget_is_not_checked_for_a_pair_on_a_preset_of_its_own(tmp_path):
    (tmp_path / "quant_pair").mkdir()
    (tmp_path / "quant_pair" / "mine.yaml").write_text(
        "name: mine\nweight: int8\nactivation: int8\n"
        "format_name: INT8_SMOOTHQUANT_CFG\nexperimental: true\n"
    )
    plan = run_plan(conf=str(tmp_path))
    assert plan.known.pairs["mine"].from_preset
    budget("1", "mine-default-small", "wint8_aint8-default-small", conf=str(tmp_path))
