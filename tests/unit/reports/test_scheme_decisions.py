"""What schemes decided per group, in schemes.md and on the page."""

from dataclasses import replace

import pytest
from builders import HtmlPage, results_of
from pytest_autoquant.manifests.records.scheme_manifest import GroupDecision
from pytest_autoquant.reports.markdown.scheme.decisions import DECISION_HEADERS, decisions
from pytest_autoquant.reports.markdown.scheme.report import schemes_markdown
from pytest_autoquant.reports.page.render import render_page
from pytest_autoquant.reports.report_model import report_model

FP8, INT4 = "wfp8_afp8", "wint4_afp16"


def group(name, chosen, weights, **scores):
    by_name = {FP8: scores["fp8"]} | ({INT4: scores["int4"]} if "int4" in scores else {})
    return GroupDecision(
        **{"name": name, "modules": (name,), "weights": weights, "format": chosen},
        scores=by_name,
        kl=scores.get("kl"),
    )


@pytest.fixture
def by_bits(derived):
    """Three groups under a budget of 6 bits."""
    return replace(
        derived,
        scheme=replace(
            derived.scheme, candidates=(INT4, FP8), measure="effective_bits", amount=6.0
        ),
        groups=(
            group("a", FP8, 1_000_000, fp8=0.25, int4=2.0, kl=0.125),
            group("b", None, 500_000, fp8=3.0, int4=8.0),
            group("c", INT4, 2_000_000, fp8=0.1, int4=0.75),
        ),
        allocation=replace(derived.allocation, score=1.0),
    )


def by_rank(derived):
    """Half of four groups, by rank."""
    scores = {"a": 3.0, "b": 1.0, "c": 4.0, "d": 2.0}
    groups = tuple(
        group(name, FP8 if name in "bd" else None, 1_000_000, fp8=score)
        for name, score in scores.items()
    )
    rule = replace(derived.scheme, amount=0.5)
    return replace(
        derived, scheme=rule, groups=groups, allocation=replace(derived.allocation, score=3.0)
    )


def test_decisions_have_format_score_share_and_the_rules_reason(derived, by_bits):
    assert [decision.cells for decision in decisions(by_bits)] == [
        (
            *("a", FP8, "0.25", "25.0%", "0.125"),
            "scores 0.25 per million weights, worth the bits it saves",
        ),
        (
            *("b", "16-bit", "", "", ""),
            f"would score 3 with {FP8}, 6 per million weights, too much for the bits it saves",
        ),
        (
            *("c", INT4, "0.75", "75.0%", ""),
            "scores 0.375 per million weights, worth the bits it saves",
        ),
    ]
    reason = "from the least sensitive; the first 2 are quantized"
    assert [(d.group, d.format, d.reason) for d in decisions(by_rank(derived))] == [
        ("a", "16-bit", f"3 of 4 {reason}, would score 3 with {FP8}, 3 per million weights"),
        ("b", FP8, f"1 of 4 {reason}"),
        ("c", "16-bit", f"4 of 4 {reason}, would score 4 with {FP8}, 4 per million weights"),
        ("d", FP8, f"2 of 4 {reason}"),
    ]


def test_group_that_cannot_take_a_candidate_says_why_and_has_no_rank(derived, by_bits):
    dead, silent = "weights are all zero", "cannot take wfp8_afp8: weights are all zero"
    ranked = by_rank(derived)
    groups = [replace(g, left_out={FP8: dead}, format=None) for g in ranked.groups[1:2]]
    found = replace(ranked, groups=(ranked.groups[0], *groups, *ranked.groups[2:]))
    reason = "from the least sensitive; the first 1 are quantized"
    assert [decision.reason for decision in decisions(found)] == [
        f"2 of 3 {reason}, would score 3 with {FP8}, 3 per million weights",
        silent,
        f"3 of 3 {reason}, would score 4 with {FP8}, 4 per million weights",
        f"1 of 3 {reason}",
    ]
    first, second, third = by_bits.groups
    second = replace(second, left_out={FP8: dead})
    third = replace(third, format=None, left_out={FP8: dead, INT4: "it is fused"})
    reasons = [each.reason for each in decisions(replace(by_bits, groups=(first, second, third)))]
    assert reasons[1].startswith(f"would score 8 with {INT4}, ")
    assert reasons[2] == f"{silent}; cannot take {INT4}: it is fused"


def test_schemes_md_and_the_page_list_every_decision(by_bits, render):
    expected = [list(decision.cells) for decision in decisions(by_bits)]
    written = render(schemes_markdown({"mine": by_bits}))
    assert written.tables[1] == [list(DECISION_HEADERS), *expected]
    page = HtmlPage(render_page(report_model(results_of(schemes={"mine": by_bits}))))
    assert page.table("scheme-decisions") == [
        ["scheme", *DECISION_HEADERS],
        *(["mine", *row] for row in expected),
    ]
    for text in (written.text, page.text):
        assert "with the least total score within 6 bits per weight" in text
