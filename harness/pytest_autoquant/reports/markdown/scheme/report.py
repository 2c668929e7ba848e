"""The report of all schemes: decision, prediction, measurement, and checks of the export."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_autoquant.manifests.case_result import RANDOM, UNKNOWN
from pytest_autoquant.manifests.ranks import spearman
from pytest_autoquant.manifests.records.scheme_manifest import (
    ExportRecord,
    SchemeManifest,
    SearchRecord,
    ViolationRecord,
)
from pytest_autoquant.reports.markdown.elements import (
    both_bits,
    code,
    number,
    percent,
    random_weights_caution,
    table,
    text,
    with_error,
)
from pytest_autoquant.reports.markdown.scheme.damage import (
    SEARCH_HEADERS,
    damage_sentences,
    interaction_cell,
    search_rows,
    uniform_cell,
)
from pytest_autoquant.reports.markdown.scheme.decisions import (
    DECISION_HEADERS,
    decisions,
    rule_sentence,
)
from pytest_autoquant.text import counted, shown_duration, shown_time

SCHEMES_MARKDOWN = "schemes.md"

MEANING = (
    "The predicted score is the sum of the scores of the quantized groups. The measured KL "
    "divergence, perplexity and top-1 agreement compare the quantized model with the unquantized "
    "one on held-out captions; a note says which of them also calibrate. After ± is the standard "
    "error over these captions. The KL divergence is divided by the sum of those of the "
    "quantized groups, each quantized alone: 1 means that their damages add up. The uniform "
    "scheme is the plain choice: the candidate with the lowest measured KL divergence, on every "
    "group that can take it, within the scheme's bits; differences are paired over captions. "
    "Bits count the language model's linears."
)

#: Violations that the report lists per scheme; more are counted.
_MOST_VIOLATIONS = 20


def agreement_sentence(schemes: Mapping[str, SchemeManifest]) -> str:
    """Return how well predictions rank schemes: Spearman per model, method and set of candidates.

    A set that all schemes of the model have is not listed a second time.
    """
    pairs: dict[str, list[tuple[float, float]]] = {}
    of_sets: dict[tuple[str, str], list[tuple[float, float]]] = {}
    has_methods = len({found.scheme.method for found in schemes.values()}) > 1
    for found in schemes.values():
        where = f"{found.model.name}, {found.dataset.size}"
        if has_methods:
            where += f", {found.scheme.method or UNKNOWN}"
        numbers = found.allocation.score, found.measured.kl
        pairs.setdefault(where, []).append(numbers)
        of_sets.setdefault((where, " and ".join(found.scheme.candidates)), []).append(numbers)
    pairs |= {
        f"{where}, {candidates}": numbers
        for (where, candidates), numbers in of_sets.items()
        if len(numbers) < len(pairs[where])
    }
    return " ".join(
        f"{what}: Spearman rank correlation of predicted score and measured KL "
        f"{spearman(numbers):.4f} over {counted(len(numbers), 'scheme')}."
        for what, numbers in pairs.items()
        if len(numbers) > 1
    )


#: The README of a checkpoint has the same, and its source.
WHAT_LOADS_IT = (
    "Exported checkpoints are for vLLM, where the static check finds no violation. transformers "
    "does not load them: it reads quantized weights without their scales and computes nonsense. "
    "The README in a checkpoint's folder says more."
)


def schemes_markdown(schemes: Mapping[str, SchemeManifest]) -> str:
    """Return every scheme as Markdown."""
    parts = ["# Mixed-precision schemes", MEANING]
    random = {found.model.name for found in schemes.values() if found.model.weights == RANDOM}
    parts += filter(None, [text(random_weights_caution(random))])
    sentence = agreement_sentence(schemes)
    if sentence:
        parts.append(text(sentence))
    if any(found.export is not None for found in schemes.values()):
        parts.append(WHAT_LOADS_IT)
    parts.append(
        table(HEADERS, [_row(found) for found in schemes.values()], right="  rrrrrrr rr   ")
    )
    for found in schemes.values():
        parts += _damage(found)
        parts += _notes(found)
        parts += _violations(found)
    for found in schemes.values():
        parts += _decisions(found)
    return "\n\n".join(parts) + "\n"


#: Columns of ``HEADERS`` that the session's summary shows.
_IN_SUMMARY = (
    "scheme",
    "model",
    "bits per weight",
    "measured KL (nats per token)",
    "KL / sum of groups alone",
    "against the uniform scheme",
)


def schemes_table(schemes: Mapping[str, SchemeManifest]) -> str:
    """Return the schemes' damage as a Markdown table for the session's summary."""
    places = [HEADERS.index(header) for header in _IN_SUMMARY]
    rows = [[_row(found)[place] for place in places] for found in schemes.values()]
    return table(_IN_SUMMARY, rows, right="  rrr ")


HEADERS = (
    "scheme",
    "model",
    "groups quantized",
    "weights quantized",
    "bits per weight",
    "size (MB)",
    "predicted score (per token)",
    "measured KL (nats per token)",
    "KL / sum of groups alone",
    "against the uniform scheme",
    "perplexity",
    "top-1 agreement",
    "static check",
    "vLLM",
    "measured",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A cell of the table; ``order`` is the number to sort by, None to sort by text."""

    text: str
    order: float | None = None


def cells(found: SchemeManifest) -> tuple[Cell, ...]:
    """Return a scheme's row as plain text, in the order of ``HEADERS``."""
    measured, decided, export = found.measured, found.allocation, found.export
    quantized = sum(group.format is not None for group in found.groups)
    before = f"(before {number(measured.perplexity_before)})"
    return (
        Cell(text=found.scheme.name),
        Cell(text=f"{found.model.name}, {found.dataset.size}"),
        Cell(text=f"{quantized} of {len(found.groups)}", order=quantized),
        Cell(text=percent(decided.fraction_of_weights), order=decided.fraction_of_weights),
        Cell(
            text=both_bits(decided.effective_bits, decided.active_bits),
            order=decided.effective_bits,
        ),
        Cell(text=_megabytes(export), order=-1 if export is None else export.bytes_after),
        Cell(text=number(decided.score), order=decided.score),
        Cell(text=with_error(measured.kl, measured.standard_error), order=measured.kl),
        Cell(text=interaction_cell(found), order=_ratio(found)),
        Cell(text=uniform_cell(found)),
        Cell(text=f"{number(measured.perplexity)} {before}", order=measured.loss),
        Cell(text=percent(measured.agreement), order=measured.agreement),
        Cell(text=check_sentence(export)),
        Cell(text=load_sentence(export)),
        Cell(text=f"{shown_time(found.measured_at)}, took {shown_duration(_seconds(found))}"),
    )


def _ratio(found: SchemeManifest) -> float:
    """Return the number to sort by; the unknown ones come first."""
    known = found.interaction is not None and found.interaction.ratio
    return known or -1.0


def _damage(found: SchemeManifest) -> list[str]:
    """Return what the damage is compared with, and the steps of a search."""
    sentences = damage_sentences(found)
    if not sentences:
        return []
    lines = [f"- {text(sentence)}" for sentence in sentences]
    heading = f"## Damage of {code(found.scheme.name)}, {text(found.model.name)}"
    steps = [] if found.search is None else [_steps(found.search)]
    return [heading, "\n".join(lines), *steps]


def _steps(search: SearchRecord) -> str:
    return table(SEARCH_HEADERS, list(search_rows(search)), right="rrrr ")


def _seconds(found: SchemeManifest) -> float:
    return math.fsum(found.timing.values())


def check_sentence(export: ExportRecord | None) -> str:
    """Return the result of the static check."""
    if export is None:
        return "not exported"
    parts = [counted(len(export.violations), "violation") if export.violations else ""]
    if export.warnings:
        parts.append(counted(len(export.warnings), "warning"))
    if export.not_checked is not None:
        parts.append(f"not checked: {export.not_checked}")
    elif not export.violations:
        parts[0] = "no violation found"
    return "; ".join(filter(None, parts))


def load_sentence(export: ExportRecord | None) -> str:
    """Return the result of loading the checkpoint in vLLM, where that was tried."""
    if export is None:
        return "not tried"
    return f"{export.load}: {export.load_text}"


def _decisions(found: SchemeManifest) -> list[str]:
    rows = [
        [code(group), code(chosen), score, share, alone, text(reason)]
        for group, chosen, score, share, alone, reason in (d.cells for d in decisions(found))
    ]
    return [
        f"## Decisions of {code(found.scheme.name)}, {text(found.model.name)}",
        text(rule_sentence(found)),
        table(DECISION_HEADERS, rows, right="  rrr "),
    ]


def _row(found: SchemeManifest) -> Sequence[str]:
    name, *rest = (cell.text for cell in cells(found))
    return [code(name), *map(text, rest)]


def _megabytes(export: ExportRecord | None) -> str:
    if export is None:
        return "not exported"
    return f"{export.bytes_after / 1e6:.1f} (before {export.bytes_before / 1e6:.1f})"


def _notes(found: SchemeManifest) -> list[str]:
    if not found.notes:
        return []
    lines = [f"- {text(note)}" for note in found.notes]
    return [f"## Notes on {code(found.scheme.name)}", "\n".join(lines)]


def _violations(found: SchemeManifest) -> list[str]:
    export, name = found.export, code(found.scheme.name)
    if export is None:
        return []
    return [
        *_records(f"## Violations of vLLM's rules in {name}", export.violations),
        *_records(f"## What vLLM tolerates in {name}", export.warnings),
    ]


def _records(heading: str, records: Sequence[ViolationRecord]) -> list[str]:
    lines = [f"- {code(each.tensor)}: {text(each.text)}" for each in records[:_MOST_VIOLATIONS]]
    if len(records) > _MOST_VIOLATIONS:
        lines.append(f"- and {len(records) - _MOST_VIOLATIONS} more")
    return [heading, "\n".join(lines)] if lines else []
