"""What a rule finds, and how findings with one cause become one line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pytest_autoquant.export.checkpoint.files import last_part
from pytest_autoquant.manifests.records.scheme_manifest import ViolationRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is wrong with one tensor, config key or file.

    Attributes:
        tensor: the tensor's name, present or missing; the key of a config; the name of a file.
        text: predicate of a sentence whose subject is ``tensor``; problems of one cause have the
            same text.
        is_tolerated: whether vLLM computes the right numbers nevertheless.
    """

    tensor: str
    text: str
    is_tolerated: bool = False


def records(found: Iterable[tuple[str, Problem]]) -> tuple[ViolationRecord, ...]:
    """Return a record per cause: a rule and a text for tensors whose names end alike.

    The record names the first tensor and how many others there are.
    """
    causes: dict[tuple[str, str, str], list[str]] = {}
    for rule, problem in found:
        cause = rule, last_part(problem.tensor), problem.text
        causes.setdefault(cause, []).append(problem.tensor)
    return tuple(_record(rule, text, tensors) for (rule, _, text), tensors in causes.items())


def _record(rule: str, text: str, tensors: list[str]) -> ViolationRecord:
    first, *others = tensors
    if others:
        text = f"{text} (and {len(others)} more, the last {others[-1]})"
    return ViolationRecord(rule=rule, tensor=first, text=text)
