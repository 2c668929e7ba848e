"""The ``dynamic`` rules of GPTQModel 7.7: regular expressions of modules, ``-:`` skips.

The first that matches counts, after ``QuantizeConfig`` has put those that skip before the others.

Schema: ``BaseQuantizeConfig`` and ``dynamic_get`` in ``gptqmodel/quantization/config.py``.
GPTQModel rounds weights by GPTQ, so it computes other values than those that were measured.
"""

from __future__ import annotations

import re
from typing import Any

from pytest_autoquant.recipes.decision import Decision, Format
from pytest_autoquant.recipes.exclusions import excluded_modules
from pytest_autoquant.recipes.refusal import (
    CannotExpressError,
    check_plain,
    express_formats,
    refuse_cut_blocks,
    refuse_experts,
    refuse_nothing,
)

_TOOL = "GPTQModel"

#: What ``group_size`` says for a scale per output channel.
_PER_ROW = -1


def recipe(decision: Decision) -> dict[str, Any]:
    """Return the arguments of ``QuantizeConfig``: a rule per linear, and for what is excluded.

    Raises:
        UsageError: GPTQModel has no form for a format, or for a linear in it; or nothing is
            quantized.
    """
    refuse_nothing(decision, _TOOL)
    refuse_experts(decision, _TOOL)
    refuse_cut_blocks(decision, _TOOL)
    forms = express_formats(decision, _TOOL, _weights)
    skipped = [*excluded_modules(), *map(_exactly, decision.modules_in(None))]
    rules: dict[str, Any] = {f"-:{pattern}": {} for pattern in skipped}
    for group, format in decision.quantized:
        rules |= {f"+:{_exactly(module)}": dict(forms[format.name]) for module in group.modules}
    return {**next(iter(forms.values())), "lm_head": False, "dynamic": rules}


def _exactly(module: str) -> str:
    return f"^{re.escape(module)}$"


def _weights(format: Format) -> dict[str, Any]:
    check_plain(format)
    if format.input is not None:
        raise CannotExpressError("which quantizes activations")
    weight = format.weight
    if weight is None or not isinstance(weight.num_bits, int) or not 2 <= weight.num_bits <= 8:
        raise CannotExpressError("whose weights are no integers of 2 to 8 bits")
    shared_by = weight.scale_shared_by("weight")
    if shared_by == "output channel":
        return {"bits": weight.num_bits, "group_size": _PER_ROW, "sym": True}
    blocks = weight.executed_blocks
    is_row = blocks is not None and (blocks.along(-2, 0) or 1) == 1 and blocks.scale_bits is None
    if shared_by != "block" or not is_row or weight.is_dynamic:
        raise CannotExpressError(f"whose weights have a scale per {shared_by}")
    return {"bits": weight.num_bits, "group_size": weight.block_size, "sym": True}
