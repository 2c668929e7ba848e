"""Refuse what a tool cannot express, by name and with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from pytest_autoquant.errors import UsageError
from pytest_autoquant.recipes.decision import Decision, Format
from pytest_autoquant.text import counted, first_few

_Expressed = TypeVar("_Expressed")


class CannotExpressError(Exception):
    """A tool has no form for a format; the message says what of it, as the end of a sentence."""


def express_formats(
    decision: Decision, tool: str, express: Callable[[Format], _Expressed]
) -> dict[str, _Expressed]:
    """Return the form of every format that groups have, by its name.

    Args:
        express: raises ``CannotExpressError``.

    Raises:
        UsageError: the tool has no form for one of them; a line for each.
    """
    expressed: dict[str, _Expressed] = {}
    problems = []
    for format in decision.formats:
        try:
            expressed[format.name] = express(format)
        except CannotExpressError as error:
            modules = decision.modules_in(format)
            problems.append(
                f"{tool} has no form for {format.name}, {error}: "
                f"{counted(len(modules), 'linear')}, {first_few(modules, 2)}; "
                "decide without that candidate"
            )
    if problems:
        raise UsageError("\n".join(problems))
    return expressed


def refuse_nothing(decision: Decision, tool: str) -> None:
    """Refuse a decision that leaves every layer group in 16 bits.

    Raises:
        UsageError: it does.
    """
    if not decision.formats:
        raise UsageError(
            f"{tool} needs a format, and every layer group stays in 16 bits; give fewer bits or a "
            "larger fraction"
        )


def refuse_experts(decision: Decision, tool: str) -> None:
    """Refuse fused experts, which the tool takes apart and calls by other names.

    Raises:
        UsageError: a quantized group is the fused experts of a mixture.
    """
    experts = [
        module for group, _ in decision.quantized for module in group.modules if is_experts(module)
    ]
    if experts:
        raise UsageError(
            f"{tool} calls each expert of a mixture by a name that the manifest does not have: "
            f"{first_few(experts, 2)}; use --for modelopt"
        )


def refuse_cut_blocks(decision: Decision, tool: str) -> None:
    """Refuse linears whose width the blocks of their format do not divide.

    Raises:
        UsageError: there is one. Widths that are not recorded are not checked.
    """
    for group, format in decision.quantized:
        for _, quantizer in format.quantizers:
            size = quantizer.block_size
            cut = [width for width in group.widths if size is not None and width % size]
            if cut:
                raise UsageError(
                    f"{tool} does not cut blocks: blocks of {size} of {format.name} do not divide "
                    f"the {cut[0]} inputs of {group.name}; decide without that candidate"
                )


def check_plain(format: Format) -> None:
    """Check that a format is a plain range of values, as the attributes that are read describe it.

    Raises:
        CannotExpressError: it needs a calibration that changes weights, or has attributes of
            ModelOpt alone.
    """
    if format.algorithm not in (None, "max"):
        raise CannotExpressError(f"which ModelOpt calibrates with {format.algorithm}")
    for pattern, quantizer in format.quantizers:
        if quantizer.others or quantizer.is_sequential or isinstance(quantizer.num_bits, str):
            raise CannotExpressError(f"whose {pattern[1:]} has attributes of ModelOpt alone")


def is_experts(module: str) -> bool:
    """Whether a module is the fused experts of a mixture, by its name in transformers."""
    return module.rpartition(".")[2] == "experts"
