"""The session's overview, on the page, in JSON and on the terminal."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.report.overview import (
    counts_sentence,
    read_skips,
    summary_json,
    summary_markdown,
    terminal_lines,
)
from harness.results import ErrorLine, Results, SkipLine, StructureLine, case_line

MLP = "model.language_model.layers.0.mlp.gate_proj"
OUTPUT = "model.language_model.layers.0.self_attn.o_proj"
HOSTILE = "<script>x</script>|`a`\n# [b](c) \\"
SHOWN = "<script>x</script>|`a` # [b](c) \\"
IN_CODE = SHOWN.replace("`", "'")

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
texts_or_worse = st.text(max_size=5) | json_values
skip_objects = st.fixed_dictionaries(
    {"case_id": texts_or_worse, "status": texts_or_worse, "reason": texts_or_worse}
)


def structure(pair, granularity, status):
    return StructureLine(
        pair=pair,
        granularity=granularity,
        status=status,
        reason="",
        format_name="F",
        effective_bits=8.0,
        digest="d",
    )


def by_id(lines):
    return {line.case_id: line for line in lines}


@pytest.fixture
def line(manifest):
    return case_line(manifest, manifest.path)


@pytest.fixture
def results(line):
    """Two measured cases, an alias, a failed one, one that raised, skips and structure cases."""
    lighter = replace(line, case_id="lighter", pair="wint8_afp16", experimental=False)
    lighter = replace(lighter, total_score=2.5e-7, top_group=f"{OUTPUT}.quant_recipe")
    lighter = replace(lighter, shares={f"{OUTPUT}.quant_recipe": 1.0}, is_satisfied=False)
    alias = replace(line, case_id="alias", status="alias", alias_of=line.case_id)
    failed = replace(line, case_id="failed", status="failed", total_score=None, problems=("NaN",))
    structures = [
        structure("wint8_afp16", "default", "supported"),
        structure("wint8_afp16", "w_group64", "supported"),
        structure("wfp4_afp8", "default", "needs-cuda"),
    ]
    return Results(
        cases=by_id([line, lighter, alias, failed]),
        skips=by_id(
            SkipLine(case_id=f"skip {i}", status="needs-cuda", reason="RuntimeError: no CUDA")
            for i in range(12)
        ),
        errors=by_id([ErrorLine(case_id="raised", problem="out of memory")]),
        structures={(s.pair, s.granularity): s for s in structures},
        write_errors=["reports/x.json: cannot be written: No space left on device"],
    )


def test_the_json_summary_is_strict_and_complete(results, line):
    document = json.loads(summary_json(results), parse_constant=pytest.fail)
    assert document["counts"] == {
        "measured": 2,
        "alias": 1,
        "failed": 2,
        "skipped": 12,
        "structure": 3,
    }
    cases = {case["case_id"]: case for case in document["cases"]}
    assert set(cases) == {line.case_id, "lighter", "alias", "failed"}
    assert cases[line.case_id]["total_score"] == 10.0
    assert cases[line.case_id]["selection_bits"] == line.selection_bits
    assert cases["failed"]["total_score"] is None
    assert cases["alias"]["alias_of"] == line.case_id
    assert "shares" not in cases["alias"]
    assert document["errors"] == [{"case_id": "raised", "problem": "out of memory"}]
    assert document["most_sensitive_groups"][:2] == [
        {"group": f"{MLP}.quant_recipe", "mean_share": 0.6},
        {"group": f"{OUTPUT}.quant_recipe", "mean_share": pytest.approx((0.1 + 1.0) / 2)},
    ]
    assert len(document["structure"]) == 3
    assert document["write_errors"] == results.write_errors


def test_the_page_shows_every_part_with_the_summarys_numbers(render, results, line):
    page = render(summary_markdown(results))
    failed, sensitive, measured, aliases, skipped, matrix = page.tables
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
            *("wint8_afp16", "a_per_token_dynamic", "small", "4.125", "2.5e-07"),
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
    assert matrix == [
        ["pair", "default", "w_group64"],
        ["wint8_afp16", "supported", "supported"],
        ["wfp4_afp8", "needs-cuda", ""],
    ]


def test_parts_with_nothing_in_them_are_left_out(render, line):
    page = render(summary_markdown(Results(cases=by_id([line]))))
    assert [table[0][0] for table in page.tables] == ["rank", "pair"]
    for absent in ("Failed", "Aliases", "Skipped", "What can run"):
        assert absent not in page.text


def test_hostile_text_breaks_neither_tables_nor_the_page(render, line):
    names = dict.fromkeys(("pair", "granularity", "size", "top_group", "case_id"), HOSTILE)
    bad = replace(line, **names, shares={HOSTILE: 1.0})
    results = Results(
        cases={
            "measured": bad,
            "alias": replace(bad, status="alias", alias_of=HOSTILE),
            "failed": replace(bad, status="failed", problems=(HOSTILE, "second")),
        },
        skips={"a": SkipLine(case_id=HOSTILE, status=HOSTILE, reason=HOSTILE)},
        errors={"a": ErrorLine(case_id=HOSTILE, problem=HOSTILE)},
        structures={(HOSTILE, HOSTILE): structure(HOSTILE, HOSTILE, HOSTILE)},
        write_errors=[HOSTILE],
    )
    page = render(summary_markdown(results))
    inline = {"h1", "h2", "p", "code", "a"}
    assert page.tags <= inline | {"table", "thead", "tbody", "tr", "th", "td"}
    failed, sensitive, measured, aliases, skipped, matrix = page.tables
    assert failed[1:] == [[IN_CODE, f"{SHOWN}; second"], [IN_CODE, SHOWN], ["not written", SHOWN]]
    assert sensitive[1:] == [["1", IN_CODE, "100.0%"]]
    assert measured[1][:3] == [f"{IN_CODE} (exp.)", IN_CODE, SHOWN]
    assert [len(row) for row in measured] == [8, 8]
    assert aliases[1:] == [[IN_CODE, IN_CODE]]
    assert skipped[1:] == [[SHOWN, SHOWN, "1"]]
    assert matrix == [["pair", IN_CODE], [IN_CODE, SHOWN]]
    json.loads(summary_json(results), parse_constant=pytest.fail)


def test_the_counts_read_as_a_sentence(results):
    assert counts_sentence(results) == (
        "2 measured, 1 aliases, 2 failed, 12 skipped (needs-cuda 12), 3 structure cases"
    )


def test_the_terminal_ends_with_counts_reasons_failures_and_the_worst_groups(results, line):
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
    results = Results(cases=by_id(aliases))
    lines = terminal_lines(results)
    assert sum(" = first" in text for text in lines) == 5
    assert lines[-1] == "  alias  and 3 more, listed in summary.md"
    assert len(render(summary_markdown(results)).tables[0]) == 1 + 8


def test_skips_are_read_back_from_a_summary(results):
    assert read_skips(summary_json(results)) == tuple(results.skips.values())


@pytest.mark.parametrize(
    "content",
    [
        "",
        "null",
        "[]",
        "{}",
        '{"skipped": null}',
        '{"skipped": 3}',
        '{"skipped": ["a"]}',
        '{"skipped": [{"case_id": "a"}]}',
        '{"skipped": [{"case_id": [], "status": "no-effect", "reason": "r"}]}',
        '{"skipped": [{"case_id": "a", "status": null, "reason": {}}]}',
        pytest.param('{"skipped": ' + "[" * 100_000, id="too deep"),
    ],
)
def test_a_summary_that_is_none_has_no_skips(content):
    assert read_skips(content) == ()


@settings(deadline=None, max_examples=200)
@given(skipped=st.lists(skip_objects | json_values, max_size=4) | json_values)
def test_whatever_is_read_as_skips_can_be_reported(skipped):
    skips = read_skips(json.dumps({"skipped": skipped}))
    results = Results(skips={skip.case_id: skip for skip in skips})
    assert len(results.skips) == len({skip.case_id for skip in skips})
    assert read_skips(summary_json(results)) == tuple(results.skips.values())
    assert summary_markdown(results).count("Skipped") == bool(skips)


@settings(max_examples=100)
@given(content=st.text())
def test_any_other_text_has_no_skips(content):
    assert read_skips(content) == ()
