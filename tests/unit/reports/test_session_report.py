"""The session's overview, on the page, in JSON and on the terminal."""

import json
from dataclasses import replace

import pytest
from pytest_autoquant.manifests.case_result import case_result_of
from pytest_autoquant.manifests.outcomes import FailedCase, SkippedCase, StructureCheck
from pytest_autoquant.manifests.session_summary import dump_summary
from pytest_autoquant.reports.report_model import report_model
from pytest_autoquant.reports.session_report import (
    counts_sentence,
    session_summary,
    summary_markdown,
)
from pytest_autoquant.reports.session_results import SessionResults
from pytest_autoquant.reports.terminal_report import terminal_lines

MLP = "model.language_model.layers.0.mlp.gate_proj"
OUTPUT = "model.language_model.layers.0.self_attn.o_proj"
HOSTILE = "<script>x</script>|`a`\n# [b](c) \\"
SHOWN = "<script>x</script>|`a` # [b](c) \\"
IN_CODE = SHOWN.replace("`", "'")


def structure(pair, granularity, status):
    return StructureCheck(
        pair=pair,
        granularity=granularity,
        status=status,
        reason="",
        format_name="F",
        effective_bits=8.0,
        digest="d",
    )


def markdown_of(results):
    return summary_markdown(report_model(results))


def json_of(results):
    text = dump_summary(session_summary(report_model(results)))
    return json.loads(text, parse_constant=pytest.fail)


def by_id(lines):
    return {line.case_id: line for line in lines}


def scored(line, total, group):
    """Return the case with one group that makes up its total score."""
    only = replace(line.groups[0], name=group, score=total, rank=1)
    return replace(line, total_score=total, groups=(only,), module_order=(group,))


@pytest.fixture
def line(manifest):
    return case_result_of(manifest)


@pytest.fixture
def results(line):
    """Two measured cases, an alias, a failed one, one that raised, skips and structure cases."""
    lighter = replace(line, case_id="lighter", pair="wint8_afp16", experimental=False)
    lighter = scored(lighter, 2.5e-7, OUTPUT)
    lighter = replace(lighter, selection=replace(line.selection, is_satisfied=False))
    alias = replace(line, case_id="alias", status="alias", alias_of=line.case_id)
    failed = replace(line, case_id="failed", status="failed", total_score=None, problems=("NaN",))
    structures = [
        structure("wint8_afp16", "default", "supported"),
        structure("wint8_afp16", "w_group64", "supported"),
        structure("wfp4_afp8", "default", "needs-cuda"),
    ]
    return SessionResults(
        cases=by_id([line, lighter, alias, failed]),
        skips=by_id(
            SkippedCase(case_id=f"skip {i}", status="needs-cuda", reason="RuntimeError: no CUDA")
            for i in range(12)
        ),
        errors=by_id([FailedCase(case_id="raised", problem="out of memory")]),
        structures={(s.pair, s.granularity): s for s in structures},
        write_errors=["reports/x.json: cannot be written: No space left on device"],
    )


def test_json_summary_is_strict_and_complete(results, line):
    document = json_of(results)
    assert document["counts"] == {
        "measured": 2,
        "alias": 1,
        "failed": 2,
        "skipped": 12,
        "structure": 3,
        "kept": 0,
        "gated": 0,
        "lost": 0,
        "schemes": 0,
    }
    cases = {case["case_id"]: case for case in document["cases"]}
    assert set(cases) == {line.case_id, "lighter", "alias", "failed"}
    assert cases[line.case_id]["total_score"] == 10.0
    assert cases[line.case_id]["selection_bits"] == line.selection.bits
    assert cases["failed"]["total_score"] is None
    assert cases["alias"]["alias_of"] == line.case_id
    assert "shares" not in cases["alias"]
    assert document["errors"] == [{"case_id": "raised", "problem": "out of memory"}]
    assert document["most_sensitive_groups"][:2] == [
        {"group": MLP, "mean_share": 0.6},
        {"group": OUTPUT, "mean_share": pytest.approx((0.1 + 1.0) / 2)},
    ]
    assert len(document["structure"]) == 3
    assert document["write_errors"] == results.write_errors


def test_markdown_has_every_section(render, results, line):
    page = render(markdown_of(results))
    failed, sensitive, measured, aliases, skipped, matrix, came_from = page.tables
    assert failed[1:] == [
        ["failed", "NaN"],
        ["raised", "out of memory"],
        ["not written", "reports/x.json: cannot be written: No space left on device"],
    ]
    assert sensitive[1:] == [
        ["1", MLP, "60.0%"],
        ["2", OUTPUT, "55.0%"],
        ["3", "model.language_model.layers.0.self_attn.q_proj", "30.0%"],
    ]
    assert measured[1:] == [
        [
            *("wint8_afp16", "a_per_token_dynamic", "small", "4.125", "2.5e-07 *"),
            *(OUTPUT, "infeasible", "7.518"),
        ],
        [
            *("wint4_aint8 (exp.)", "a_per_token_dynamic", "small", "4.125", "10"),
            *(MLP, "2 of 3", "7.518"),
        ],
    ]
    assert page.links[0].startswith("toy/weight-int4-act-int8/a_per_token_dynamic/small/")
    assert aliases[1:] == [["alias", line.case_id]]
    assert skipped[1:] == [["needs-cuda", "RuntimeError: no CUDA", "12"]]
    assert ["torch", "2.11.0"] in came_from
    assert matrix == [
        ["pair", "default", "w_group64"],
        ["wfp4_afp8", "needs-cuda", ""],
        ["wint8_afp16", "supported", "supported"],
    ]


def test_empty_sections_are_omitted(render, line):
    page = render(markdown_of(SessionResults(cases=by_id([line]))))
    assert [table[0][0] for table in page.tables] == ["rank", "pair", ""]
    for absent in ("Failed", "Aliases", "Skipped", "What can run"):
        assert absent not in page.text


def test_hostile_text_breaks_neither_tables_nor_the_page(render, line):
    names = dict.fromkeys(("model", "pair", "granularity", "size", "case_id"), HOSTILE)
    bad = replace(
        scored(line, 1.0, HOSTILE), **names, source=replace(line.source, origin={HOSTILE: HOSTILE})
    )
    results = SessionResults(
        cases={
            "measured": bad,
            "alias": replace(bad, status="alias", alias_of=HOSTILE),
            "failed": replace(bad, status="failed", problems=(HOSTILE, "second")),
        },
        skips={"a": SkippedCase(case_id=HOSTILE, status=HOSTILE, reason=HOSTILE)},
        errors={"a": FailedCase(case_id=HOSTILE, problem=HOSTILE)},
        structures={(HOSTILE, HOSTILE): structure(HOSTILE, HOSTILE, HOSTILE)},
        left_out=[HOSTILE],
        command=HOSTILE,
        write_errors=[HOSTILE],
    )
    page = render(markdown_of(results))
    inline = {"h1", "h2", "p", "code", "a", "ul", "li", "img"}
    assert page.images == []
    assert page.tags <= inline | {"table", "thead", "tbody", "tr", "th", "td"}
    failed, sensitive, measured, aliases, skipped, matrix, came_from = page.tables
    assert failed[1:] == [[IN_CODE, f"{SHOWN}; second"], [IN_CODE, SHOWN], ["not written", SHOWN]]
    assert sensitive[1:] == [["1", IN_CODE, "100.0%"]]
    assert measured[1][:3] == [f"{IN_CODE} (exp.)", IN_CODE, SHOWN]
    assert [len(row) for row in measured] == [8, 8]
    assert aliases[1:] == [[IN_CODE, IN_CODE]]
    assert skipped[1:] == [[SHOWN, SHOWN, "1"]]
    assert matrix == [["pair", IN_CODE], [IN_CODE, SHOWN]]
    assert came_from[1:] == [[SHOWN, SHOWN], ["command", IN_CODE]]
    assert f"Left out {SHOWN}" in " ".join(page.text.split())
    json_of(results)


def test_counts_are_one_sentence(results):
    assert counts_sentence(results) == (
        "2 measured, 1 alias, 2 failed, 12 skipped (needs-cuda 12), 3 structure cases"
    )


def test_terminal_ends_with_counts_reasons_failures_and_the_worst_groups(results, line):
    lines = terminal_lines(results)
    assert lines[0] == counts_sentence(results)
    assert lines[1:] == [
        "  skipped   12  needs-cuda: RuntimeError: no CUDA",
        f"  alias  alias = {line.case_id}",
        "  failed failed: NaN",
        "  failed raised: out of memory",
        "most sensitive groups (q_proj is q, k and v; gate_proj is gate and up), by",
        "mean share of a case's total score:",
        f"   1.  60.0%  {MLP}",
        f"   2.  55.0%  {OUTPUT}",
        "   3.  30.0%  model.language_model.layers.0.self_attn.q_proj",
        "NOT WRITTEN: reports/x.json: cannot be written: No space left on device",
    ]


def test_many_aliases_are_cut_on_the_terminal_but_not_on_the_page(render, line):
    aliases = [
        replace(line, case_id=f"alias {i}", status="alias", alias_of="first") for i in range(8)
    ]
    results = SessionResults(cases=by_id(aliases))
    lines = terminal_lines(results)
    assert sum(" = first" in text for text in lines) == 5
    assert lines[-1] == "  alias  and 3 more, listed in summary.md"
    assert len(render(markdown_of(results)).tables[0]) == 1 + 8


def with_gate(results, line):
    """The same session of a shard, resumed and gated, in which two cases were lost."""
    return replace(
        results,
        shard="2/3",
        command="pytest --aq-pairs all",
        gated={line.case_id: "drifted: total score +9%"},
        reruns={line.case_id: "torch 2.10 -> 2.11", "lighter": "torch 2.10 -> 2.11"},
        kept={"lighter", "alias"},
        lost=("gone", "missing"),
        write_errors=[],
    )


def test_json_summary_has_shard_reruns_kept_gated_and_lost_cases(results, line):
    document = json_of(with_gate(results, line))
    counts = {name: document["counts"][name] for name in ("kept", "gated", "lost")}
    assert counts == {"kept": 2, "gated": 1, "lost": 2}
    assert document["shard"] == "2/3"
    assert document["gated"] == {line.case_id: "drifted: total score +9%"}
    assert document["reruns"] == dict.fromkeys((line.case_id, "lighter"), "torch 2.10 -> 2.11")
    assert (document["kept"], document["lost"]) == (["alias", "lighter"], ["gone", "missing"])


def test_kept_gated_and_lost_cases_are_counted_where_there_are_any(results, line):
    sentence = counts_sentence(with_gate(results, line))
    assert sentence.removeprefix(counts_sentence(results)) == (
        ", 2 kept from an earlier run, 1 stopped by the gate, 2 lost"
    )


def test_terminal_names_gated_and_lost_cases_and_counts_reruns_by_reason(results, line):
    plain, gated = terminal_lines(results), terminal_lines(with_gate(results, line))
    assert [text for text in gated[1:] if text not in plain] == [
        f"  gate   {line.case_id}",
        "  lost   gone: was to run and sent no outcome",
        "  lost   missing: was to run and sent no outcome",
        "  re-run    2  changed: torch 2.10 -> 2.11",
    ]


def test_gated_and_lost_cases_are_on_the_page_among_the_failed(render, results, line):
    failed = render(markdown_of(with_gate(results, line))).tables[0]
    assert failed[1:] == [
        ["failed", "NaN"],
        ["raised", "out of memory"],
        [line.case_id, "drifted: total score +9%"],
        ["gone", "lost: was to run and sent no outcome"],
        ["missing", "lost: was to run and sent no outcome"],
    ]


def test_files_left_out_are_listed_in_markdown_and_json(render):
    reasons = ["a/x.json: is not JSON", "b/y.json: is the same case as c"]
    results = SessionResults(left_out=reasons)
    text = " ".join(render(markdown_of(results)).text.split())
    assert "Left out a/x.json: is not JSON b/y.json: is the same case as c" in text
    assert json_of(results)["left_out"] == reasons


def test_cases_on_the_frontier_are_starred(render, line):
    line = replace(line, experimental=False)
    worse = replace(line, case_id="worse", pair="wint8_afp16", effective_bits=8.25)
    better = replace(line, case_id="better", pair="wfp8_afp8", effective_bits=8.0, total_score=1.0)
    tables = render(markdown_of(SessionResults(cases=by_id([line, worse, better])))).tables
    (cases,) = [table for table in tables if table[0][0] == "pair"]
    assert sorted((row[0], row[4]) for row in cases[1:]) == [
        ("wfp8_afp8", "1 *"),
        ("wint4_aint8", "10 *"),
        ("wint8_afp16", "10"),
    ]


def test_every_measured_view_has_its_picture_in_the_summary(line):
    large = replace(line, case_id="large", size="large")
    markdown = markdown_of(SessionResults(cases=by_id([line, large])))
    assert "](grid-toy-small.svg)" in markdown
    assert "](grid-toy-large.svg)" in markdown
