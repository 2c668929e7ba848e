"""The report of ``aq-harness check-export``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pytest_autoquant.export.checkpoint.files import QUOTE_LENGTH
from pytest_autoquant.export.vllm_rules.architecture.known import ARCHITECTURES
from pytest_autoquant.export.vllm_rules.exported_model import ExportedModel
from pytest_autoquant.export.vllm_rules.rules import RULES, Findings
from pytest_autoquant.text import one_line


def export_report(folder: Path, export: ExportedModel, found: Findings) -> str:
    """Return a line per violation and warning, what the export holds, and what was checked."""
    return "\n".join(_lines(folder, export, found))


def _lines(folder: Path, export: ExportedModel, found: Findings) -> Iterator[str]:
    for record in found.violations:
        yield one_line(f"{record.rule}: {record.tensor} {record.text}")
    for record in found.warnings:
        yield one_line(f"warning, {record.rule}: {record.tensor} {record.text}")
    yield f"{folder}: {_algorithm(export)}{_quantized(export)}"
    if found.not_checked is not None:
        yield one_line(f"not checked: {found.not_checked}; known: {', '.join(ARCHITECTURES)}")
    num_applied = sum(export.is_known or not rule.needs_names for rule in RULES.values())
    if found.violations:
        rules = ", ".join(dict.fromkeys(record.rule for record in found.violations))
        yield f"violations: {len(found.violations)}, of the rules {rules}; not tried in vLLM"
    else:
        yield f"no violation of the {num_applied} static rules found; not tried in vLLM"


def _quantized(export: ExportedModel) -> str:
    if not export.is_known:
        return ""
    num_quantized = sum(linear.is_quantized for linear in export.linears)
    return f", {num_quantized} of {len(export.linears)} linears quantized"


def _algorithm(export: ExportedModel) -> str:
    if export.quantization is None:
        return "no quantization"
    return one_line(export.quantization.algorithm or "no algorithm", QUOTE_LENGTH)
