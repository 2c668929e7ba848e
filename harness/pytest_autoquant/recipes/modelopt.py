"""The ``quant_cfg`` of ModelOpt 0.47, as ``mtq.quantize`` takes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_autoquant.recipes.decision import Decision, Format
from pytest_autoquant.recipes.refusal import CannotExpressError, express_formats, is_experts


def recipe(decision: Decision) -> dict[str, Any]:
    """Return a config with an entry per linear and quantizer, after one that disables all.

    Raises:
        UsageError: a format needs another calibration than ``max``, which is one for all linears.
    """
    express_formats(decision, "ModelOpt", _check_calibration)
    entries: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    for group, format in decision.quantized:
        for pattern, quantizer in format.quantizers:
            entries += [
                {"quantizer_name": _quantizer(module, pattern), "cfg": _plain(quantizer.modelopt())}
                for module in group.modules
            ]
    return {"quant_cfg": entries, "algorithm": "max"}


def _check_calibration(format: Format) -> None:
    if format.algorithm not in (None, "max"):
        raise CannotExpressError(f"calibrated with {format.algorithm}, beside other formats")


def _quantizer(module: str, pattern: str) -> str:
    """Return the name of a linear's quantizer, of fused experts a pattern for all matrices."""
    return f"{module}.*_{pattern[1:]}" if is_experts(module) else f"{module}.{pattern[1:]}"


def _plain(value: Any) -> Any:
    """Return a value as YAML writes it: tuples as lists."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
