"""What a scheme decided for every layer group, and why, from its manifest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pytest_autoquant.allocation.scheme import BY_BITS
from pytest_autoquant.manifests.case_result import COUNTED, finite
from pytest_autoquant.manifests.records.scheme_manifest import GroupDecision, SchemeManifest
from pytest_autoquant.reports.markdown.elements import number, percent

#: How a group that is not quantized is shown.
UNQUANTIZED = "16-bit"

DECISION_HEADERS = (
    "group",
    "format",
    "score (per token)",
    "share of the prediction",
    "KL alone (nats per token)",
    "reason",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A layer group's format.

    Attributes:
        score: of the chosen format, per scored token; None where the group is not quantized.
        share: of the scheme's predicted score; None without a score or a prediction.
        kl: measured with this group alone quantized; None if it was not.
        reason: how the scheme's rule came to the format.
    """

    group: str
    format: str
    score: float | None
    share: float | None
    kl: float | None
    reason: str

    @property
    def cells(self) -> tuple[str, ...]:
        """The decision as text, in the order of ``DECISION_HEADERS``."""
        score = "" if self.score is None else number(self.score)
        share = "" if self.share is None else percent(self.share)
        kl = "" if self.kl is None else number(self.kl)
        return self.group, self.format, score, share, kl, self.reason


def rule_sentence(found: SchemeManifest) -> str:
    """Return the scheme's rule as one sentence, and the method of its scores where it is known."""
    method = found.scheme.method
    return _rule(found) + (f" Scores are by {method}." if method else "")


def _rule(found: SchemeManifest) -> str:
    amount, candidates = found.scheme.amount, " or ".join(found.scheme.candidates)
    if found.scheme.measure == "effective_bits":
        return (
            f"Every group takes {candidates} or stays in 16 bits, with the least total score "
            f"within {amount:.6g} bits per {COUNTED[found.scheme.cost]}: a group's score is "
            "weighed against the bits it saves."
        )
    if found.scheme.measure == "max_kl":
        return (
            f"Every group takes {candidates} or stays in 16 bits, with the least total score "
            "within the fewest bits that were found to measure a KL divergence of at most "
            f"{amount:.6g} nats per token: a group's score is weighed against the bits it saves."
        )
    of = "groups" if found.scheme.measure == "fraction_of_groups" else "weights"
    return f"{candidates} for {percent(amount)} of the {of}, in ascending order of score."


def decisions(found: SchemeManifest) -> tuple[Decision, ...]:
    """Return what became of every group, in the manifest's order."""
    if found.scheme.measure in BY_BITS:
        reasons = [_reason_by_bits(group) for group in found.groups]
    else:
        reasons = list(_reasons_by_rank(found))
    total = found.allocation.score
    return tuple(
        Decision(
            group=group.name,
            format=UNQUANTIZED if group.format is None else group.format,
            score=(score := None if group.format is None else group.scores[group.format]),
            share=finite(score / total) if score is not None and total else None,
            kl=group.kl,
            reason=reason,
        )
        for group, reason in zip(found.groups, reasons, strict=True)
    )


def _reasons_by_rank(found: SchemeManifest) -> Iterator[str]:
    """Yield the place of every group in ascending order of score, as ``allocate`` takes them."""
    able = {i: scores for i, group in enumerate(found.groups) if (scores := _takeable(group))}
    order = sorted(able, key=lambda i: (min(able[i].values()), i))
    places = {index: place for place, index in enumerate(order, start=1)}
    quantized = sum(group.format is not None for group in found.groups)
    for index, group in enumerate(found.groups):
        if index not in places:
            yield _not_takeable(group)
            continue
        score = "" if group.format is not None else f", would score {_least(group)}"
        yield (
            f"{places[index]} of {len(order)} from the least sensitive; the first {quantized} are "
            f"quantized{score}"
        )


def _reason_by_bits(group: GroupDecision) -> str:
    if not _takeable(group):
        return _not_takeable(group)
    if group.format is None:
        return f"would score {_least(group)}, too much for the bits it saves"
    return f"scores {_per_weights(group, group.scores[group.format])}, worth the bits it saves"


def _takeable(group: GroupDecision) -> dict[str, float]:
    """Return the scores of the candidates that the group can take."""
    return {name: score for name, score in group.scores.items() if name not in group.left_out}


def _not_takeable(group: GroupDecision) -> str:
    """Return why no candidate fits the group."""
    reasons = [f"cannot take {name}: {reason}" for name, reason in group.left_out.items()]
    return "; ".join(reasons) or "has no candidate"


def _least(group: GroupDecision) -> str:
    """Return the lowest score that a candidate has for the group, which can take one."""
    scores = _takeable(group)
    candidate = min(scores, key=lambda name: scores[name])
    score = scores[candidate]
    return f"{number(score)} with {candidate}, {_per_weights(group, score)}"


def _per_weights(group: GroupDecision, score: float) -> str:
    share = finite(1e6 * score / group.weights) if group.weights else None
    return f"{number(share)} per million weights"
