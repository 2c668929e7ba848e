"""What a session found out, reduced to what summaries show."""

from dataclasses import replace

import pytest

from harness.results import (
    ErrorLine,
    Results,
    SkipLine,
    StructureLine,
    case_line,
    most_sensitive_groups,
)

ATTENTION = "model.language_model.layers.0.self_attn.q_proj.quant_recipe"
OUTPUT = "model.language_model.layers.0.self_attn.o_proj.quant_recipe"
MLP = "model.language_model.layers.0.mlp.gate_proj.quant_recipe"


@pytest.fixture
def line(manifest):
    return case_line(manifest, manifest.path)


def with_total(manifest, total):
    return replace(manifest, autoquant_state=replace(manifest.autoquant_state, total_score=total))


def skip(case_id, status, reason):
    return SkipLine(case_id=case_id, status=status, reason=reason)


def test_a_case_line_says_what_its_manifest_says(line):
    assert line.case_id == "toy/wint4_aint8/a_per_token_dynamic/small/gradient"
    assert (line.pair, line.granularity, line.size) == (
        "wint4_aint8",
        "a_per_token_dynamic",
        "small",
    )
    assert (line.status, line.alias_of, line.experimental) == ("measured", None, True)
    assert (line.effective_bits, line.total_score) == (4.125, 10.0)
    assert (line.selected_groups, line.num_groups, line.is_satisfied) == (2, 3, True)
    assert line.selection_bits == pytest.approx(7.517857142857143)
    assert line.top_group == MLP
    assert line.manifest == (
        "toy/weight-int4-act-int8/a_per_token_dynamic/small/"
        "wint4_aint8_autoquant_lm_quant_manifest.json"
    )


def test_shares_are_parts_of_the_total_score(line):
    assert line.shares == {ATTENTION: 0.3, OUTPUT: 0.1, MLP: 0.6}


@pytest.mark.parametrize("total", [None, 0.0])
def test_there_are_no_shares_without_a_total(manifest, total):
    assert case_line(with_total(manifest, total), manifest.path).shares == {}


def test_a_manifest_without_groups_has_no_top_group(manifest):
    empty = replace(manifest, sensitivity_ranking=(), layer_sensitivity={}, layers={})
    line = case_line(with_total(empty, 0.0), manifest.path)
    assert (line.top_group, line.selected_groups, line.num_groups) == ("", 0, 0)


def test_mean_shares_count_every_measured_case_once_whatever_its_total(line):
    lines = [
        replace(line, total_score=1e-9, shares={MLP: 0.2, OUTPUT: 0.8}),
        replace(line, total_score=1e9, shares={MLP: 0.6, OUTPUT: 0.4}),
        replace(line, status="alias", shares={MLP: 1.0}),
        replace(line, status="failed", shares={MLP: 1.0}),
    ]
    ranked = most_sensitive_groups(lines)
    assert [group for group, _ in ranked] == [OUTPUT, MLP]
    assert dict(ranked) == pytest.approx({OUTPUT: 0.6, MLP: 0.4})
    assert most_sensitive_groups(lines, most=1) == ranked[:1]
    assert most_sensitive_groups([]) == []


def test_skips_are_counted_by_status_and_reason_most_frequent_first():
    skips = [
        skip("a", "needs-cuda", "no kernel"),
        skip("b", "no-effect", "ignored"),
        skip("c", "no-effect", "ignored"),
        skip("d", "no-effect", "another reason"),
        skip("e", "no-effect", "ignored"),
    ]
    results = Results(skips={line.case_id: line for line in skips})
    assert results.skip_counts() == [
        ("no-effect", "ignored", 3),
        ("needs-cuda", "no kernel", 1),
        ("no-effect", "another reason", 1),
    ]


def test_failures_are_failed_manifests_and_cases_that_raised(line):
    failed = replace(line, case_id="broken", status="failed", problems=("first", "second"))
    raised = ErrorLine(case_id="raised", problem="out of memory")
    results = Results(cases={"ok": line, "broken": failed}, errors={"raised": raised})
    assert results.failures == [ErrorLine(case_id="broken", problem="first; second"), raised]
    assert results.by_status("measured") == [line]


def test_results_are_empty_until_anything_of_ours_arrives(line):
    structure = StructureLine(
        pair="p",
        granularity="g",
        status="supported",
        reason="",
        format_name="F",
        effective_bits=8.0,
        digest="d",
    )
    assert Results().is_empty
    for filled in (
        Results(cases={"a": line}),
        Results(skips={"a": skip("a", "no-effect", "ignored")}),
        Results(errors={"a": ErrorLine(case_id="a", problem="x")}),
        Results(structures={("p", "g"): structure}),
        Results(lost=("a",)),
        Results(write_errors=["disk full"]),
    ):
        assert not filled.is_empty


def test_the_last_thing_known_of_a_case_is_what_counts(line):
    results = Results()
    lines = (
        skip(line.case_id, "needs-cuda", "no kernel"),
        ErrorLine(case_id=line.case_id, problem="out of memory"),
        line,
        skip(line.case_id, "no-effect", "ignored"),
    )
    known = []
    for newest in lines:
        results.add(newest)
        known.append([*results.cases.values(), *results.errors.values(), *results.skips.values()])
    assert known == [[newest] for newest in lines]


def test_every_case_that_sent_an_outcome_is_known(line):
    results = Results()
    results.add(line)
    results.add(skip("skipped", "no-effect", "ignored"))
    results.add(ErrorLine(case_id="raised", problem="x"))
    assert results.case_ids == {line.case_id, "skipped", "raised"}


def test_sorting_orders_every_part_by_id_and_loses_nothing(line):
    results = Results(
        cases={name: replace(line, case_id=name) for name in "ba"},
        skips={name: skip(name, "no-effect", "ignored") for name in "dc"},
        errors={name: ErrorLine(case_id=name, problem="x") for name in "fe"},
        gated={"h": "drifted", "g": "drifted"},
    )
    results.sort()
    parts = (results.cases, results.skips, results.errors, results.gated)
    assert ["".join(part) for part in parts] == ["ab", "cd", "ef", "gh"]
