"""Schemes: what they decided, what was predicted, what was measured, what a runtime says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_autoquant.manifests.scheme_manifest import ExportRecord, SchemeManifest
from pytest_autoquant.regression.comparison import spearman
from pytest_autoquant.reports.markdown import bits, code, number, percent, table, text

SCHEMES_MARKDOWN = "schemes.md"

MEANING = (
    "The predicted score is the sum of the scores of the quantized groups. The measured KL "
    "divergence, perplexity and top-1 agreement compare the quantized model with the unquantized "
    "one on captions that neither scored nor calibrated. Bits count the language model's linears."
)
_MOST_VIOLATIONS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemePoint:
    """A scheme in the plot of measured damage against prediction."""

    scheme: str
    score: float
    kl: float
    detail: str


def scheme_points(schemes: Mapping[str, SchemeManifest]) -> tuple[SchemePoint, ...]:
    """Return the schemes that a log scale can show: both numbers above zero."""
    return tuple(
        SchemePoint(
            scheme=found.scheme.name,
            score=found.allocation.score,
            kl=found.measured.kl,
            detail=f"{found.scheme.name}: predicted score {number(found.allocation.score)} per "
            f"token, measured KL {number(found.measured.kl)} nats per token",
        )
        for found in schemes.values()
        if found.allocation.score > 0 and found.measured.kl > 0
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetPoint:
    """The best prediction of a candidate set within so many bits per weight."""

    candidates: str
    bits: float
    score: float
    detail: str


def budget_points(schemes: Mapping[str, SchemeManifest]) -> tuple[BudgetPoint, ...]:
    """Return the frontier of every candidate set of every model and size, each once."""
    sets = {
        f"{', '.join(found.scheme.candidates)} ({found.model.name}, {found.dataset.size})": found
        for found in schemes.values()
    }
    return tuple(
        BudgetPoint(
            candidates=name,
            bits=point.effective_bits,
            score=point.score,
            detail=f"{name}: {number(point.score)} per token at {bits(point.effective_bits)} bits "
            "per weight",
        )
        for name, found in sets.items()
        for point in found.frontier
    )


def agreement_sentence(schemes: Mapping[str, SchemeManifest]) -> str:
    """Say how far prediction and measurement rank schemes alike: of a model, and of one pair."""
    pairs: dict[str, list[tuple[float, float]]] = {}
    for found in schemes.values():
        where = f"{found.model.name}, {found.dataset.size}"
        numbers = found.allocation.score, found.measured.kl
        pairs.setdefault(where, []).append(numbers)
        pairs.setdefault(f"{where}, {' and '.join(found.scheme.candidates)}", []).append(numbers)
    return " ".join(
        f"{what}: Spearman rank correlation of predicted score and measured KL "
        f"{spearman(numbers):.4f} over {len(numbers)} schemes."
        for what, numbers in pairs.items()
        if len(numbers) > 1
    )


def schemes_markdown(schemes: Mapping[str, SchemeManifest]) -> str:
    """Return every scheme as Markdown."""
    parts = ["# Mixed-precision schemes", MEANING]
    sentence = agreement_sentence(schemes)
    if sentence:
        parts.append(text(sentence))
    parts.append(table(HEADERS, [_row(found) for found in schemes.values()], right="  rrrrrrrr  "))
    for found in schemes.values():
        parts += _violations(found)
    return "\n\n".join(parts) + "\n"


HEADERS = (
    *("scheme", "model", "groups quantized", "weights quantized", "bits per weight"),
    *("size (MB)", "predicted score (per token)", "measured KL (nats per token)"),
    *("perplexity", "top-1 agreement", "static check", "vLLM"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A cell of the table; ``order`` is the number to sort by, None of a word."""

    text: str
    order: float | None = None


def cells(found: SchemeManifest) -> tuple[Cell, ...]:
    """Return a scheme's line as plain text, in the order of ``HEADERS``."""
    measured, decided, export = found.measured, found.allocation, found.export
    quantized = sum(group.format is not None for group in found.groups)
    before = f"(before {number(measured.perplexity_before)})"
    return (
        Cell(text=found.scheme.name),
        Cell(text=f"{found.model.name}, {found.dataset.size}"),
        Cell(text=f"{quantized} of {len(found.groups)}", order=quantized),
        Cell(text=percent(decided.fraction_of_weights), order=decided.fraction_of_weights),
        Cell(text=bits(decided.effective_bits), order=decided.effective_bits),
        Cell(text=_megabytes(export), order=-1 if export is None else export.bytes_after),
        Cell(text=number(decided.score), order=decided.score),
        Cell(text=number(measured.kl), order=measured.kl),
        Cell(text=f"{number(measured.perplexity)} {before}", order=measured.loss),
        Cell(text=percent(measured.agreement), order=measured.agreement),
        Cell(text=check_sentence(export)),
        Cell(text=load_sentence(export)),
    )


def check_sentence(export: ExportRecord | None) -> str:
    """Say what the static rules found."""
    if export is None:
        return "not exported"
    if not export.violations:
        return "no violation found"
    return f"{len(export.violations)} violations"


def load_sentence(export: ExportRecord | None) -> str:
    """Say what became of loading it in vLLM; never that it would work."""
    if export is None:
        return "not tried"
    return f"{export.load}: {export.load_text}"


def _row(found: SchemeManifest) -> Sequence[str]:
    name, *rest = (cell.text for cell in cells(found))
    return [code(name), *map(text, rest)]


def _megabytes(export: ExportRecord | None) -> str:
    if export is None:
        return "not exported"
    return f"{export.bytes_after / 1e6:.1f} (before {export.bytes_before / 1e6:.1f})"


def _violations(found: SchemeManifest) -> list[str]:
    if found.export is None or not found.export.violations:
        return []
    every = found.export.violations
    lines = [f"- {code(v.tensor)}: {text(v.text)}" for v in every[:_MOST_VIOLATIONS]]
    if len(every) > _MOST_VIOLATIONS:
        lines.append(f"- and {len(every) - _MOST_VIOLATIONS} more")
    return [f"## What vLLM's loader refuses in {code(found.scheme.name)}", "\n".join(lines)]
