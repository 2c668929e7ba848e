"""The session's overview, on the page, in JSON and on the terminal."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from builders import results_of, structure_check
from pytest_autoquant.manifests.records.outcomes import FailedCase, SkippedCase
from pytest_autoquant.manifests.records.scheme_manifest import ExportRecord, ViolationRecord
from pytest_autoquant.manifests.records.session_summary import dump_summary
from pytest_autoquant.reports.markdown.scheme.report import schemes_markdown
from pytest_autoquant.reports.markdown.session.record import session_summary
from pytest_autoquant.reports.markdown.session.report import summary_markdown
from pytest_autoquant.reports.markdown.session.sentences import last_run_sentences
from pytest_autoquant.reports.report_model import report_model
from pytest_autoquant.reports.session_results import last_run_of
from pytest_autoquant.reports.terminal_report import terminal_lines

MLP = "model.language_model.layers.0.mlp.gate_proj"
OUTPUT = "model.language_model.layers.0.self_attn.o_proj"


def markdown_of(results):
    return summary_markdown(report_model(results))


def json_of(results):
    text = dump_summary(session_summary(report_model(results)))
    return json.loads(text, parse_constant=pytest.fail)


def scored(line, total, group):
    """Return the case with one group that makes up its total score."""
    only = replace(line.groups[0], name=group, score=total, rank=1)
    return replace(line, total_score=total, groups=(only,), module_order=(group,))


@pytest.fixture
def results(line):
    """Two measured cases, an alias, a failed one, one that raised, skips and structure cases."""
    lighter = replace(line, case_id="lighter", pair="wint8_afp16", experimental=False)
    lighter = scored(lighter, 2.5e-7, OUTPUT)
    return results_of(
        line,
        replace(lighter, selection=replace(line.selection, is_satisfied=False)),
        replace(line, case_id="alias", status="alias", alias_of=line.case_id),
        replace(line, case_id="failed", status="failed", total_score=None, problems=("NaN",)),
        *(
            SkippedCase(case_id=f"skip {i}", status="needs-cuda", reason="RuntimeError: no CUDA")
            for i in range(12)
        ),
        FailedCase(case_id="raised", problem="out of memory"),
        structure_check("wint8_afp16", "default"),
        structure_check("wint8_afp16", "w_group64"),
        structure_check("wfp4_afp8", "default", "needs-cuda"),
        write_errors=["reports/x.json: cannot be written: No space left on device"],
        left_out=["a/x.json: is not JSON", "b/y.json: is the same case as c"],
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
        {"group": group, "mean_share": pytest.approx(share), "model": "toy", "method": "gradient"}
        for group, share in ((OUTPUT, (0.1 + 1.0) / 2), (MLP, (0.6 + 0.0) / 2))
    ]
    assert len(document["structure"]) == 3
    assert document["write_errors"] == results.write_errors
    assert document["left_out"] == results.left_out


def test_markdown_has_every_section(render, results, line):
    page = render(markdown_of(results))
    failed, sensitive, measured, aliases, skipped, matrix, came_from = page.tables
    assert failed[1:] == [
        ["failed", "NaN"],
        ["raised", "out of memory"],
        ["not written", "reports/x.json: cannot be written: No space left on device"],
    ]
    assert sensitive[1:] == [
        ["1", OUTPUT, "55.0%"],
        ["2", MLP, "30.0%"],
        ["3", "model.language_model.layers.0.self_attn.q_proj", "15.0%"],
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
    text = " ".join(page.text.split())
    assert (
        "Left out 2 files not used: a/x.json: is not JSON b/y.json: is the same case as c" in text
    )
    assert aliases[1:] == [["alias", line.case_id]]
    assert skipped[1:] == [["needs-cuda", "RuntimeError: no CUDA", "12"]]
    assert ["torch", "2.11.0"] in came_from
    assert matrix == [
        ["pair", "default", "w_group64"],
        ["wfp4_afp8", "needs-cuda", ""],
        ["wint8_afp16", "supported", "supported"],
    ]


def test_terminal_ends_with_counts_reasons_failures_and_the_worst_groups(results, line):
    assert terminal_lines(results) == [
        "2 measured, 1 alias, 2 failed, 12 skipped (needs-cuda 12), 3 structure cases",
        "  skipped   12  needs-cuda: RuntimeError: no CUDA",
        f"  alias  alias = {line.case_id}",
        "  failed failed: NaN",
        "  failed raised: out of memory",
        "  budget    1  cannot be stored in 8 bits per weight (--aq-effective-bits); the first of "
        "them fits at 4.125",
        "most sensitive groups (q_proj is q, k and v; gate_proj is gate and up), by",
        "mean share of a case's total score:",
        f"   1.  55.0%  {OUTPUT}",
        f"   2.  30.0%  {MLP}",
        "   3.  15.0%  model.language_model.layers.0.self_attn.q_proj",
        "left out: a/x.json: is not JSON",
        "left out: b/y.json: is the same case as c",
        "NOT WRITTEN: reports/x.json: cannot be written: No space left on device",
    ]


def test_options_that_left_candidates_out_or_made_a_broken_checkpoint_are_named(derived, render):
    """On the terminal, and with the tensors in the schemes' report."""
    records = [ViolationRecord(rule=rule, tensor=rule, text="is <b>") for rule in ("a", "b", "b")]
    export = ExportRecord(
        bytes_before=1024,
        bytes_after=512,
        num_quantized=1,
        largest_error=0.0,
        num_identical=3,
        violations=tuple(records),
        load="not tried",
        load_text="x",
        warnings=tuple(records[:1]),
        not_checked="the rules c: why",
    )
    reason = "vllm cannot load w, exported as X"
    only = replace(derived.scheme, name="only", left_out={"w": reason}, target="vllm")
    first = replace(derived, export=export)
    second = replace(first, scheme=only, export=replace(export, warnings=(), not_checked=None))
    schemes = {"1": first, "2": second}
    counts = "--aq-export wrote a checkpoint with 3 violations of vLLM's rules (a, b), listed in"
    assert terminal_lines(results_of(schemes=schemes))[1:] == [
        "  scheme mine: 8 bits per weight, KL 0.001 nats per token",
        f"    {counts} schemes.md; --aq-target vllm leaves out what vLLM cannot load",
        "    --aq-export: 1 warning about vLLM, listed in schemes.md",
        "    --aq-export: not checked for vLLM: the rules c: why",
        "  scheme only: 8 bits per weight, KL 0.001 nats per token",
        f"    --aq-target vllm left out: {reason}",
        f"    {counts} schemes.md",
    ]
    page = render(schemes_markdown(schemes))
    assert [row[12] for row in page.tables[0][1:]] == [
        "3 violations; 1 warning; not checked: the rules c: why",
        "3 violations",
    ]
    text = " ".join(page.text.split())
    assert "transformers does not load them: it reads quantized weights without" in text
    assert "Violations of vLLM's rules in mine a: is <b> b: is <b> b: is <b>" in text
    assert "What vLLM tolerates in mine a: is <b>" in text


def test_many_aliases_are_cut_on_the_terminal_but_not_on_the_page(render, line):
    aliases = [
        replace(line, case_id=f"alias {i}", status="alias", alias_of="first") for i in range(8)
    ]
    results = results_of(*aliases)
    lines = terminal_lines(results)
    assert sum(" = first" in text for text in lines) == 5
    assert lines[-1] == "  alias  and 3 more, listed in summary.md"
    assert len(render(markdown_of(results)).tables[0]) == 1 + 8


def test_gated_kept_and_lost_cases_are_in_every_report_of_a_resumed_shard(render, results, line):
    reruns = dict.fromkeys((line.case_id, "lighter"), "torch 2.10 -> 2.11")
    gated = replace(
        results,
        shard="2/3",
        gated={line.case_id: "drifted: total score +9%"},
        reruns=reruns,
        kept={"lighter", "alias"},
        selected_anew=dict.fromkeys(("lighter", "alias"), "bit budget 8 -> 6"),
        lost=("gone", "missing"),
        write_errors=[],
    )
    document = json_of(gated)
    counts = {name: document["counts"][name] for name in ("kept", "gated", "lost")}
    assert counts == {"kept": 2, "gated": 1, "lost": 2}
    assert (document["shard"], document["gated"]) == ("2/3", gated.gated)
    assert document["reruns"] == reruns
    assert (document["kept"], document["lost"]) == (["alias", "lighter"], ["gone", "missing"])
    plain, lines = terminal_lines(results), terminal_lines(gated)
    assert lines[0] == f"{plain[0]}, 2 kept from an earlier run, 1 stopped by the gate, 2 lost"
    assert [text for text in lines[1:] if text not in plain] == [
        f"  gate   {line.case_id}",
        "  lost   gone: was to run and sent no outcome",
        "  lost   missing: was to run and sent no outcome",
        "  re-run    2  changed: torch 2.10 -> 2.11",
        "  kept      2  selected anew: bit budget 8 -> 6",
    ]
    assert render(markdown_of(gated)).tables[0][3:] == [
        [line.case_id, "drifted: total score +9%"],
        ["gone", "lost: was to run and sent no outcome"],
        ["missing", "lost: was to run and sent no outcome"],
    ]


def test_summary_of_measured_cases_stars_the_frontier_and_draws_every_view(render, line):
    line = replace(line, experimental=False)
    worse = replace(line, case_id="worse", pair="wint8_afp16", effective_bits=8.25)
    better = replace(line, case_id="better", pair="wfp8_afp8", effective_bits=8.0, total_score=1.0)
    large = replace(line, case_id="large", size="large")
    page = render(markdown_of(results_of(line, worse, better, large)))
    cases = [row for table in page.tables if table[0][0] == "pair" for row in table[1:]]
    assert sorted((row[0], row[2], row[4]) for row in cases) == [
        ("wfp8_afp8", "small", "1 *"),
        ("wint4_aint8", "large", "10 *"),
        ("wint4_aint8", "small", "10 *"),
        ("wint8_afp16", "small", "10"),
    ]
    assert sorted(page.images) == ["grid-toy-large.svg", "grid-toy-small.svg"]
    for absent in ("Failed", "Aliases", "Skipped", "What can run"):
        assert absent not in page.text


def test_schemes_that_were_not_derived_are_listed_with_the_reason(render):
    failed = FailedCase(case_id="toy/schemes/half/small", problem="export failed")
    page = render(markdown_of(results_of(failed, lost=("toy/schemes/rest/small",))))
    (schemes,) = [table for table in page.tables if table[0][0] == "not derived"]
    assert schemes[1:] == [
        ["toy/schemes/half/small", "failed", "export failed"],
        ["toy/schemes/rest/small", "lost", "was to run and sent no outcome"],
    ]


def test_structure_cases_alone_have_no_text_on_scores(render):
    check = structure_check("wfp8_afp8", "w_group96", notes=("width 128 of a: padded to 192",))
    text = render(markdown_of(results_of(check))).text
    assert "w_group96: width 128 of a: padded to 192" in text
    assert "No case was measured; the table below says what can run." in text
    assert "A score is" not in text


def test_infeasible_has_a_footnote(render, results, line):
    note = "infeasible: the budget is below the fewest bits"
    assert note in render(markdown_of(results)).text
    assert note not in render(markdown_of(results_of(line))).text


def test_summary_says_when_the_last_run_started_and_what_it_took(line):
    started = datetime.now(UTC) - timedelta(seconds=90)
    results = results_of(line)
    results.last_run = last_run_of(results_of(line, started=started))
    (sentence,) = last_run_sentences(results)
    assert f", started {started:%Y-%m-%d %H:%M:%S} UTC, took 1 min 3" in sentence
    assert 90 <= results.last_run.seconds < 95
