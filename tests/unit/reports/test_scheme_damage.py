"""What a scheme's damage is compared with, in schemes.md, summary.md, on the page and terminal."""

from dataclasses import replace

import pytest
from builders import HtmlPage, results_of
from pytest_autoquant.manifests.records.scheme_manifest import (
    InteractionRecord,
    SearchRecord,
    SearchStep,
    UniformRecord,
)
from pytest_autoquant.reports.markdown.scheme.damage import SEARCH_HEADERS, damage_sentences
from pytest_autoquant.reports.markdown.scheme.report import schemes_markdown
from pytest_autoquant.reports.markdown.session.report import summary_markdown
from pytest_autoquant.reports.page.render import render_page
from pytest_autoquant.reports.report_model import report_model
from pytest_autoquant.reports.terminal_report import terminal_lines

WORSE = UniformRecord(
    kl={"wfp8_afp8": 8e-4, "wint4_afp16": None},
    candidate="wfp8_afp8",
    effective_bits=8.0,
    difference=2e-4,
    standard_error=3e-5,
    noise=6e-5,
    verdict="worse",
)
MEASURES = "uniform wfp8_afp8 measures 0.0008 nats per token at 8 bits per weight, 0.0002 ± 3e-05"


def step(bits, kl, passed):
    return SearchStep(effective_bits=bits, score=1 / bits, kl=kl, passed=passed)


SEARCH = SearchRecord(
    limit=1e-3,
    steps=(step(4.0, None, False), step(8.0, 1e-3, True), step(6.0, 2e-3, False)),
    num_selections=300,
    num_unmeasured=0,
)


@pytest.fixture
def scheme(derived):
    """A scheme measured on 16 captions, found by search, and worse than FP8 everywhere."""
    return replace(
        derived,
        scheme=replace(derived.scheme, measure="max_kl", amount=1e-3),
        measured=replace(derived.measured, standard_error=2e-5, caption_predictions=(6,) * 16),
        search=SEARCH,
        interaction=InteractionRecord(sum_kl=5e-4, ratio=2.0, standard_error=0.1),
        uniform=WORSE,
    )


def sentence(scheme, **changes):
    """The sentence of a scheme that has nothing else to say."""
    alone = replace(scheme, **{"search": None, "interaction": None, "uniform": None, **changes})
    (found,) = damage_sentences(alone)
    return found


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, f"Worse than the plain choice: {MEASURES} less than the scheme."),
        (
            {"verdict": "better", "difference": -2e-4},
            f"Better than the plain choice: {MEASURES} more than the scheme.",
        ),
        (
            {"verdict": "no difference"},
            f"No difference from the plain choice beyond the noise: {MEASURES} apart.",
        ),
        ({"verdict": "same"}, "It is the plain choice: uniform wfp8_afp8."),
        (
            {"verdict": None, "standard_error": None, "not_compared": "one caption"},
            f"Beside the plain choice: {MEASURES.removesuffix(' ± 3e-05')} apart; no verdict: one "
            "caption.",
        ),
        (
            {"candidate": None, "verdict": None, "not_compared": "none fits"},
            "Not compared with a plain choice: none fits.",
        ),
    ],
)
def test_uniform_scheme_in_words(scheme, changes, expected):
    assert sentence(scheme, uniform=replace(WORSE, **changes)) == expected


@pytest.mark.parametrize(
    ("ratio", "error", "said"),
    [
        (2.0, 0.1, "2 ± 0.1 of that: damages reinforce each other."),
        (0.5, 0.1, "0.5 ± 0.1 of that: damages cancel in part."),
        (1.2, 0.1, "1.2 ± 0.1 of that: damages add up within the noise."),
        (1.2, None, "1.2 of that: whether damages add up is not known without an error bar."),
    ],
)
def test_interaction_in_words(scheme, ratio, error, said):
    """Within 2.13 standard errors, Student's t of 16 captions, damages add up."""
    found = InteractionRecord(sum_kl=5e-4, ratio=ratio, standard_error=error)
    start = "The KL divergences of its 1 group, each quantized alone, sum to 0.0005 nats per token"
    assert sentence(scheme, interaction=found) == f"{start}; the scheme's is {said}"
    none = InteractionRecord(not_measured="it is a mixture")
    expected = "Groups were not compared with the scheme: it is a mixture."
    assert sentence(scheme, interaction=none) == expected


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "The next smaller selection fails. Among the measured ones, more bits always"),
        ({"num_unmeasured": 7}, "measured one fails; 7 in between were not measured. Among"),
        ({"steps": SEARCH.steps[1:2]}, "No selection stores fewer bits. Among the measured"),
        (
            {"steps": (*SEARCH.steps, step(12.0, 2e-3, False))},
            "more bits did not always measure less: one with fewer bits that was not measured may",
        ),
    ],
)
def test_search_in_words(scheme, changes, said):
    found = sentence(scheme, search=replace(SEARCH, **changes))
    steps = len(changes.get("steps", SEARCH.steps))
    assert found.startswith(
        f"8 bits per weight are the fewest found within 0.001 nats per token: measured were {steps}"
        " of 300 selections on the exact frontier. "
    )
    assert said in found


STEPS = [
    ["1", "4", "0.25", "not finite", "fails"],
    ["3", "6", "0.1667", "0.002", "fails"],
    ["2", "8", "0.125", "0.001", "passes"],
]


def test_every_report_has_the_comparisons(scheme, render):
    results = results_of(schemes={"mine": scheme})
    model = report_model(results)
    written, page = render(schemes_markdown(results.schemes)), HtmlPage(render_page(model))
    summary = render(summary_markdown(model))
    cells = ["0.001 ± 2e-05", "2 ± 0.1", "WORSE than wfp8_afp8"]
    assert written.tables[0][1][7:10] == page.table("schemes")[1][7:10] == cells
    (table,) = [each for each in summary.tables if each[0][0] == "scheme"]
    assert table[1][3:] == cells
    assert written.tables[1] == [list(SEARCH_HEADERS), *STEPS]
    assert page.table("scheme-search")[1:] == [["mine", *row] for row in STEPS]
    for text in (written.text, page.text):
        flat = " ".join(text.split())
        assert all(sentence in flat for sentence in damage_sentences(scheme))
        assert "measure a KL divergence of at most 0.001 nats per token: a group's" in flat
    assert "Worse than the plain choice" in page.text_of(**{"class": "worse"})
    assert f"    Worse than the plain choice: {MEASURES} less than the scheme." in terminal_lines(
        results
    )


def test_manifest_of_an_earlier_version_is_shown_without_comparisons(derived, render):
    written = render(schemes_markdown({"mine": derived}))
    assert written.tables[0][1][7:10] == ["0.001", "n/a", "n/a"]
    assert damage_sentences(derived) == ()
    page = HtmlPage(render_page(report_model(results_of(schemes={"mine": derived}))))
    assert "What the damage is worth" not in page.text
    assert "Measured along the frontier" not in page.text
