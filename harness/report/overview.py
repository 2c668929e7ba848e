"""The session's overview: what ran, what was skipped and why, which groups hurt most."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Any, TypeVar
from urllib.parse import quote

from harness.case import SIZES
from harness.manifest import SCHEMA_VERSION
from harness.report.layers import GROUP_SUFFIX, LAYERS_MARKDOWN
from harness.report.markdown import GROUPS_MEAN, SCORE_MEANS, code, number, percent, table, text
from harness.results import CaseLine, Results, SkipLine, StructureLine, most_sensitive_groups

SUMMARY_MARKDOWN, SUMMARY_JSON = "summary.md", "summary.json"


def summary_json(results: Results) -> str:
    """Return the overview as JSON."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "counts": {
            "measured": len(results.by_status("measured")),
            "alias": len(results.by_status("alias")),
            "failed": len(results.failures),
            "skipped": len(results.skips),
            "structure": len(results.structures),
        },
        "cases": [_without_shares(line) for line in results.cases.values()],
        "skipped": [asdict(skip) for skip in results.skips.values()],
        "errors": [asdict(line) for line in results.errors.values()],
        "structure": [asdict(line) for line in results.structures.values()],
        "most_sensitive_groups": [
            {"group": group, "mean_share": share}
            for group, share in most_sensitive_groups(results.cases.values())
        ],
        "write_errors": results.write_errors,
    }
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def read_skips(text_of_summary: str) -> tuple[SkipLine, ...]:
    """Return the skipped cases that an earlier ``summary.json`` recorded; none if it is not one."""
    return _read_lines(text_of_summary, "skipped", SkipLine)


def read_structures(text_of_summary: str) -> tuple[StructureLine, ...]:
    """Return the structure cases that an earlier ``summary.json`` recorded."""
    return _read_lines(text_of_summary, "structure", StructureLine)


_Line = TypeVar("_Line", SkipLine, StructureLine)


def _read_lines(text_of_summary: str, key: str, kind: type[_Line]) -> tuple[_Line, ...]:
    try:
        rows: list[dict[str, Any]] = json.loads(text_of_summary)[key]
        lines = tuple(kind(**row) for row in rows)
        kinds = {"effective_bits": (int, float)}
        valid = all(
            isinstance(value, kinds.get(name, str)) for row in rows for name, value in row.items()
        )
        return lines if valid else ()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ()


def summary_markdown(results: Results) -> str:
    """Return the overview as Markdown, fit for a CI job summary."""
    parts = ["# Quantization sensitivity", text(counts_sentence(results)), SCORE_MEANS]
    parts += _failed(results)
    parts += _sensitive(results)
    parts += _measured(results)
    parts += _aliases(results.by_status("alias"))
    parts += _skipped(results)
    parts += _matrix(results)
    return "\n\n".join(parts) + "\n"


def counts_sentence(results: Results) -> str:
    """Return the counts: measured, aliases, failed, skipped by status, structure cases."""
    statuses: dict[str, int] = {}
    for status, _, count in results.skip_counts():
        statuses[status] = statuses.get(status, 0) + count
    why = ", ".join(f"{status} {count}" for status, count in statuses.items())
    parts = [
        f"{len(results.by_status('measured'))} measured",
        f"{len(results.by_status('alias'))} aliases",
        f"{len(results.failures)} failed",
        f"{len(results.skips)} skipped" + (f" ({why})" if why else ""),
        f"{len(results.structures)} structure cases",
    ]
    return ", ".join(parts)


def terminal_lines(results: Results) -> list[str]:
    """Return the summary that ends a pytest run."""
    lines = [counts_sentence(results)]
    for status, reason, count in results.skip_counts():
        lines.append(f"  skipped {count:4d}  {status}: {reason}")
    for line in results.by_status("alias")[:5]:
        lines.append(f"  alias  {line.case_id} = {line.alias_of}")
    more = len(results.by_status("alias")) - 5
    if more > 0:
        lines.append(f"  alias  and {more} more, listed in {SUMMARY_MARKDOWN}")
    lines += [f"  failed {line.case_id}: {line.problem}" for line in results.failures]
    ranked = most_sensitive_groups(results.cases.values())
    if ranked:
        lines.append("most sensitive groups (q_proj is q, k and v; gate_proj is gate and up), by")
        lines.append("mean share of a case's total score:")
    for place, (group, share) in enumerate(ranked, start=1):
        lines.append(f"  {place:2d}. {share:6.1%}  {group.removesuffix(GROUP_SUFFIX)}")
    lines += [f"NOT WRITTEN: {error}" for error in results.write_errors]
    return lines


def _without_shares(line: CaseLine) -> dict[str, object]:
    record = asdict(line)
    del record["shares"]
    return record


def _failed(results: Results) -> list[str]:
    if not results.failures and not results.write_errors:
        return []
    rows = [(code(line.case_id), text(line.problem)) for line in results.failures]
    rows += [("not written", text(error)) for error in results.write_errors]
    return ["## Failed", table(("case", "problem"), rows)]


def _sensitive(results: Results) -> list[str]:
    ranked = most_sensitive_groups(results.cases.values())
    if not ranked:
        return []
    rows = [
        (place, code(group.removesuffix(GROUP_SUFFIX)), percent(share))
        for place, (group, share) in enumerate(ranked, start=1)
    ]
    return [
        "## Most sensitive groups",
        f"Mean share of a case's total score, every measured case counted once. {GROUPS_MEAN}",
        table(("rank", "group", "mean share"), rows, right="r r"),
    ]


def _measured(results: Results) -> list[str]:
    measured = results.by_status("measured")
    if not measured:
        return []
    rows = [
        (
            f"[{code(line.pair)}]({_link(line.manifest)})"
            + (" (exp.)" if line.experimental else ""),
            code(line.granularity),
            text(line.size),
            f"{line.effective_bits:.4g}",
            number(line.total_score),
            code(line.top_group.removesuffix(GROUP_SUFFIX)),
            f"{line.selected_groups} of {line.num_groups}" if line.is_satisfied else "infeasible",
            f"{line.selection_bits:.4g}",
        )
        for line in sorted(measured, key=_by_damage)
    ]
    headers = (
        "pair",
        "granularity",
        "size",
        "bits per weight",
        "total score",
        "most sensitive group",
        "quantized under budget",
        "bits under budget",
    )
    return ["## Cases, least damage first", table(headers, rows, right="   rr rr")]


def _by_damage(line: CaseLine) -> tuple[int, float, str]:
    order = list(SIZES).index(line.size) if line.size in SIZES else len(SIZES)
    return order, line.total_score or 0.0, line.case_id


def _aliases(aliases: Sequence[CaseLine]) -> list[str]:
    if not aliases:
        return []
    rows = [(code(line.case_id), code(line.alias_of)) for line in aliases]
    return [
        "## Aliases",
        "The same effective config under another name: measured once, same scores.",
        table(("case", "measured as"), rows),
    ]


def _skipped(results: Results) -> list[str]:
    if not results.skips:
        return []
    rows = [(text(s), text(reason), count) for s, reason, count in results.skip_counts()]
    return ["## Skipped", table(("status", "reason", "cases"), rows, right="  r")]


def _matrix(results: Results) -> list[str]:
    if not results.structures:
        return []
    granularities = list(dict.fromkeys(key[1] for key in results.structures))
    pairs = list(dict.fromkeys(key[0] for key in results.structures))
    rows = [
        [code(pair)]
        + [
            text(results.structures[pair, name].status)
            if (pair, name) in results.structures
            else ""
            for name in granularities
        ]
        for pair in pairs
    ]
    return ["## What can run", table(["pair", *map(code, granularities)], rows)]


def _link(path: str) -> str:
    """Link to the layer report beside a manifest."""
    return quote(PurePosixPath(path).with_name(LAYERS_MARKDOWN).as_posix())
