"""The report of ``aq-harness check-export``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pytest_autoquant.export.checkpoint_files import QUOTE_LENGTH
from pytest_autoquant.export.vllm_rules.exported_model import ExportedModel
from pytest_autoquant.export.vllm_rules.rules import RULES
from pytest_autoquant.manifests.scheme_manifest import ViolationRecord
from pytest_autoquant.text import one_line


def export_report(
    folder: Path, export: ExportedModel, violations: Sequence[ViolationRecord]
) -> str:
    """Return a line per violation, what the export holds, and what was checked."""
    return "\n".join(_lines(folder, export, violations))


def _lines(
    folder: Path, export: ExportedModel, violations: Sequence[ViolationRecord]
) -> Iterator[str]:
    for violation in violations:
        yield one_line(f"{violation.rule}: {violation.tensor} {violation.text}")
    linears = list(export.linears())
    num_quantized = sum(linear.is_quantized for linear in linears)
    yield f"{folder}: {_algorithm(export)}, {num_quantized} of {len(linears)} linears quantized"
    if violations:
        rules = ", ".join(dict.fromkeys(violation.rule for violation in violations))
        yield f"violations: {len(violations)}, of the rules {rules}; not tried in vLLM"
    else:
        yield f"no violation of the {len(RULES)} static rules found; not tried in vLLM"


def _algorithm(export: ExportedModel) -> str:
    if export.quantization is None:
        return "no quantization"
    return one_line(export.quantization.algorithm or "no algorithm", QUOTE_LENGTH)
