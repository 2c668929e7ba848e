"""Markdown text, code spans and tables, with every special character escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from pytest_autoquant.manifests.case_result import CaseResult
from pytest_autoquant.text import counted, digits_apart, one_line

_SPECIAL = re.compile(r"([\\`*_\[\]<>|~&])")

SCORE_MEANS = (
    "A score is the squared change of a layer's output, weighted by the squared gradient of the "
    "loss: a second-order estimate of the loss increase, with the empirical Fisher in place of the "
    "Hessian. It is summed over a layer group that is quantized alone, and divided by the number "
    "of scored tokens."
)
GROUPS_MEAN = (
    "A group is named after its first linear: q_proj stands for q, k and v together, gate_proj for "
    "gate and up."
)
STABILITY_MEANS = (
    "Spearman rank correlation of the layer groups between two calibration sizes; 1 is the same "
    "order. It compares what was scored. Where both sizes scored the same captions, only "
    "calibration differs: the number says how much the ranking depends on calibrating with more "
    "captions, and nothing of how it depends on the captions that are scored. Where they share "
    "some, it is higher than for captions of their own, by an unknown amount. Only sizes that "
    "share no scored caption show whether other captions rank the groups alike. Sizes that hold "
    "the same captions are one measurement and are not compared."
)
ERROR_BARS_MEAN = (
    "Error bars are over captions: what other captions of the same kind would give. After ± is the "
    "standard error. Groups that share ranks, such as 2 to 4, are tied at 95%; the last column is "
    "the probability of being among the ten most sensitive."
)
SHARES_MEAN = "Mean share of a case's total score, every measured case of the model counted once."
ALIGNED_MEANS = (
    "The cases name groups in several ways; names are matched and shown from the list of layers on."
)
KL_SCORE_MEANS = (
    "A score is the KL divergence in nats per scored token between the model with one layer group "
    "quantized and the unquantized model."
)
SUM_MEANS = (
    "The total score is a sum over groups that were each quantized alone: it guides which of them "
    "to keep in 16 bits, but it cannot see that errors of groups reinforce or cancel each other. "
    "Compare whole configurations by the measured KL."
)
WHOLE_MEANS = (
    "The measured KL is the divergence, in nats per token, of the model with every layer group "
    f"quantized from the unquantized model. {SUM_MEANS}"
)

FISHER_SCORE_MEANS = (
    "A score is the squared change of the logits in the Fisher information of the model's own "
    "predictions, to first order and estimated from drawn gradients, of a layer group that is "
    "quantized alone, divided by the number of scored tokens. Half of it estimates the KL "
    "divergence in nats per token."
)
RANKS_MEAN = (
    "Scores rank the groups of a configuration; their totals compare configurations of one model "
    "on the same captions roughly. A score is not an accuracy."
)

#: What a score means, by method.
METHOD_MEANS = {
    "gradient": SCORE_MEANS,
    "fisher": FISHER_SCORE_MEANS,
    "kl_div": KL_SCORE_MEANS,
}


def scores_mean(methods: Iterable[str]) -> str:
    """Return what the scores of these methods mean, and what they do not tell."""
    used = set(methods)
    meanings = {method: means for method, means in METHOD_MEANS.items() if method in used}
    if len(meanings) < 2:
        return " ".join((*meanings.values(), RANKS_MEAN))
    each = [f"By {method}: {means}" for method, means in meanings.items()]
    return " ".join((*each, "Scores of different methods do not compare.", RANKS_MEAN))


RANDOM_WEIGHTS = "random weights: nothing here holds for a trained model"

INFEASIBLE_MEANS = (
    "infeasible: the budget is below the fewest bits that the groups can be stored in."
)
LOST_MEANS = "was to run and sent no outcome"


def random_weights_caution(models: Iterable[str]) -> str:
    """Return the caution on models with random weights; empty without one."""
    names = ", ".join(sorted(models))
    if not names:
        return ""
    return (
        f"Caution: the weights of {names} are random. Scores, rankings, selections and schemes "
        "rehearse a run; they say nothing of a trained model."
    )


def text(value: object) -> str:
    """Return ``value`` as running text: every Markdown or HTML character escaped, one line."""
    return _SPECIAL.sub(r"\\\1", one_line(value))


def code(value: object) -> str:
    """Return ``value`` as an inline code span that is safe in a table cell."""
    flat = one_line(value).replace("`", "'").replace("|", "\\|")
    return f"`{flat}`" if flat.strip() else ""


def table(headers: Sequence[str], rows: Sequence[Sequence[object]], *, right: str = "") -> str:
    """Return a GitHub table of ready-made Markdown cells, whose columns line up in the source too.

    ``tabulate`` takes 17 ms for a table of 720 rows and 8 columns, this function 1.4 ms.

    Args:
        right: one letter per column, ``r`` for right-aligned; the others are left-aligned.
    """
    lines = [[str(cell) for cell in row] for row in (headers, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    sides = [str.rjust if c == "r" else str.ljust for c in right.ljust(len(headers))]
    rule = [
        "-" * (width - 1) + ":" if side is str.rjust else ":" + "-" * (width - 1)
        for side, width in zip(sides, widths, strict=True)
    ]
    padded = [
        [side(cell, width) for side, cell, width in zip(sides, line, widths, strict=True)]
        for line in lines
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in (padded[0], rule, *padded[1:]))


def number(value: float | None) -> str:
    """Return a score with four significant digits, ``n/a`` for None."""
    return "n/a" if value is None else f"{value:.4g}"


def with_error(value: float | None, error: float | None) -> str:
    """Return a score and its standard error, which two digits tell; no error if it is unknown."""
    return number(value) if error is None else f"{number(value)} ± {error:.2g}"


def whole_kl_shown(case: CaseResult) -> str:
    """Return the measured KL divergence of a case with its standard error, ``n/a`` without."""
    whole = case.whole
    return "n/a" if whole is None else with_error(whole.kl, whole.standard_error)


def captions_used(case: CaseResult, count: int) -> str:
    """Return on how many captions of a case something was measured, and of how many."""
    captions = counted(count, "caption")
    if case.scored.count == count:
        return captions
    return f"the first {captions} of {case.scored.count} that are scored"


def numbers_apart(first: float | None, second: float | None) -> tuple[str, str]:
    """Return two scores as ``number`` does, with more digits where they would look the same."""
    if first is None or second is None:
        return number(first), number(second)
    digits = digits_apart(first, second, 4, "g")
    return f"{first:.{digits}g}", f"{second:.{digits}g}"


def drift_shown(drift: float) -> str:
    """Return a relative drift as a signed percentage, with digits to tell it from none."""
    return f"{drift:+.{digits_apart(drift, 0.0, 3, '%')}%}"


def correlation(value: float) -> str:
    """Return a rank correlation, with digits to tell it from that of equal orders."""
    return f"{value:.{digits_apart(value, 1.0, 4, 'f')}f}"


def both_bits(stored: float | None, active: float | None) -> str:
    """Return bits per stored weight, and per active one where they are not the same weights."""
    return bits(stored) + ("" if active is None else f" ({bits(active)} active)")


def bits(value: float | None) -> str:
    """Return bits per weight with four significant digits, ``unknown`` for None."""
    return "unknown" if value is None else f"{value:.4g}"


def percent(value: float | None) -> str:
    """Return a share of one as a percentage, ``n/a`` for None."""
    return "n/a" if value is None else f"{100 * value:.1f}%"
