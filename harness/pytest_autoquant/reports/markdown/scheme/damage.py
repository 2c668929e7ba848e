"""What a scheme's damage is compared with, in words: its groups alone, and the plain choice."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from pytest_autoquant.manifests.records.scheme_manifest import (
    SchemeManifest,
    SearchRecord,
    UniformRecord,
)
from pytest_autoquant.manifests.uncertainty import student_t
from pytest_autoquant.reports.markdown.elements import bits, number, with_error
from pytest_autoquant.text import counted

SEARCH_HEADERS = (
    "measured",
    "bits per weight",
    "predicted score (per token)",
    "measured KL (nats per token)",
    "result",
)

#: Verdicts as a cell of the table; the candidate follows.
_VERDICTS = {
    "better": "better than",
    "worse": "WORSE than",
    "no difference": "no difference beyond the noise from",
    "same": "is",
}


def interaction_cell(found: SchemeManifest) -> str:
    """Return the ratio of the scheme's damage to the sum of its groups' own."""
    if found.interaction is None:
        return "n/a"
    return with_error(found.interaction.ratio, found.interaction.standard_error)


def uniform_cell(found: SchemeManifest) -> str:
    """Return how the scheme compares with the best uniform one of at most its bits."""
    uniform = found.uniform
    if uniform is None:
        return "n/a"
    if uniform.verdict is None:
        return "not compared" if uniform.kl else "none fits"
    return f"{_VERDICTS[uniform.verdict]} {uniform.candidate}"


def damage_sentences(found: SchemeManifest) -> tuple[str, ...]:
    """Return everything that is known beside a scheme's damage; nothing in earlier manifests."""
    return tuple(
        filter(None, (uniform_sentence(found), _interaction_sentence(found), _searched(found)))
    )


def uniform_sentence(found: SchemeManifest) -> str:
    """Return whether the scheme is worth more than the plain choice."""
    uniform = found.uniform
    if uniform is None:
        return ""
    if uniform.verdict == "same":
        return f"It is the plain choice: uniform {uniform.candidate}."
    if uniform.candidate is None:
        return f"Not compared with a plain choice: {uniform.not_compared}."
    best = (
        f"uniform {uniform.candidate} measures {number(uniform.kl[uniform.candidate])} nats per "
        f"token at {bits(uniform.effective_bits)} bits per weight"
    )
    by = with_error(_magnitude(uniform), uniform.standard_error)
    if uniform.verdict == "worse":
        return f"Worse than the plain choice: {best}, {by} less than the scheme."
    if uniform.verdict == "better":
        return f"Better than the plain choice: {best}, {by} more than the scheme."
    if uniform.verdict == "no difference":
        return f"No difference from the plain choice beyond the noise: {best}, {by} apart."
    return f"Beside the plain choice: {best}, {by} apart; no verdict: {uniform.not_compared}."


def _magnitude(uniform: UniformRecord) -> float | None:
    return None if uniform.difference is None else abs(uniform.difference)


def _interaction_sentence(found: SchemeManifest) -> str:
    interaction = found.interaction
    if interaction is None:
        return ""
    if interaction.ratio is None:
        return f"Groups were not compared with the scheme: {interaction.not_measured}."
    quantized = sum(group.format is not None for group in found.groups)
    ratio = with_error(interaction.ratio, interaction.standard_error)
    return (
        f"The KL divergences of its {counted(quantized, 'group')}, each quantized alone, sum to "
        f"{number(interaction.sum_kl)} nats per token; the scheme's is {ratio} of that: "
        f"{_what_damages_do(found)}."
    )


def _what_damages_do(found: SchemeManifest) -> str:
    interaction, captions = found.interaction, len(found.measured.caption_predictions)
    assert interaction is not None
    assert interaction.ratio is not None
    if interaction.standard_error is None or captions < 2:
        return "whether damages add up is not known without an error bar"
    noise = student_t(captions - 1) * interaction.standard_error
    if abs(interaction.ratio - 1) <= noise:
        return "damages add up within the noise"
    return "damages reinforce each other" if interaction.ratio > 1 else "damages cancel in part"


def search_rows(search: SearchRecord) -> Iterator[tuple[str, ...]]:
    """Yield a row per measured selection, in the order of ``SEARCH_HEADERS``, fewest bits first."""
    steps = sorted(enumerate(search.steps, start=1), key=lambda step: step[1].effective_bits)
    for place, step in steps:
        kl = "not finite" if step.kl is None else number(step.kl)
        yield (
            str(place),
            f"{step.effective_bits:.6g}",
            number(step.score),
            kl,
            "passes" if step.passed else "fails",
        )


def _searched(found: SchemeManifest) -> str:
    search = found.search
    if search is None:
        return ""
    return (
        f"{bits(found.allocation.effective_bits)} bits per weight are the fewest found within "
        f"{search.limit:.6g} nats per token: measured were {len(search.steps)} of "
        f"{counted(search.num_selections, 'selection')} on the exact frontier. {_below(search)} "
        f"{_order(search)}"
    )


def _below(search: SearchRecord) -> str:
    """Return what is known of fewer bits than those found."""
    if all(step.passed for step in search.steps):
        return "No selection stores fewer bits."
    if search.num_unmeasured:
        return (
            f"The next smaller measured one fails; {search.num_unmeasured} in between were not "
            "measured."
        )
    return "The next smaller selection fails."


def _order(search: SearchRecord) -> str:
    """Return whether measured damage fell with every added bit."""
    steps = sorted(search.steps, key=lambda step: step.effective_bits)
    known = [step.kl for step in steps if step.kl is not None]
    if any(after > before for before, after in pairwise(known)):
        return (
            "Among the measured ones, more bits did not always measure less: one with fewer bits "
            "that was not measured may pass too."
        )
    return "Among the measured ones, more bits always measured less."
