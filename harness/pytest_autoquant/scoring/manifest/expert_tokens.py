"""How many calibration tokens each expert of a mixture saw, and what few of them mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

from pytest_autoquant.calibration.batches import Batch
from pytest_autoquant.manifests.records.sensitivity_manifest import ExpertTokens
from pytest_autoquant.models.loading import LoadedModel
from pytest_autoquant.text import counted

#: Fewest tokens from which an expert's part of a range and of a score is taken to be known.
FLOOR = 16

#: By fused experts, the tokens that each expert saw.
ExpertCounts = Mapping[str, Sequence[int]]

#: How many experts a note names.
_NAMED = 3


def count_expert_tokens(model: LoadedModel, batches: Sequence[Batch]) -> dict[str, list[int]]:
    """Run batches and count the tokens that each expert of fused experts sees.

    Experts that are not called with tokens, experts and weights, as ModelOpt's fused ones are, are
    left out.
    """
    names = [linear.name for linear in model.linears if linear.is_fused]
    counts: dict[str, torch.Tensor] = {}
    if not names:
        return {}
    with torch.no_grad(), ExitStack() as stack:
        for name in names:
            module = model.module.get_submodule(name)
            hook = partial(_count, counts, name)
            stack.callback(module.register_forward_pre_hook(hook).remove)
        for batch in batches:
            model.module(input_ids=model.tensor(batch), use_cache=False)
    return {name: seen.tolist() for name, seen in counts.items()}


def expert_tokens(counts: ExpertCounts, model: LoadedModel) -> dict[str, ExpertTokens]:
    """Return what a manifest records of them."""
    routed = {linear.name: linear.experts_per_token for linear in model.linears}
    return {
        name: ExpertTokens(per_token=routed[name] or 0, tokens=" ".join(map(str, seen)))
        for name, seen in counts.items()
    }


def expert_notes(counts: ExpertCounts) -> tuple[str, ...]:
    """Return a note where experts saw no token, and one where they saw fewer than ``FLOOR``.

    ModelOpt 0.47.0 calibrates the weights of every expert by the weights themselves, and has one
    input range per matrix for all experts of a layer (``_QuantFusedExperts``).
    """
    every = [(name, i, tokens) for name, seen in counts.items() for i, tokens in enumerate(seen)]
    idle = [expert for expert in every if expert[2] == 0]
    few = [expert for expert in every if 0 < expert[2] < FLOOR]
    of = f"of {counted(len(every), 'expert')}"
    sentences = (
        (
            idle,
            f"no calibration token reaches {len(idle)} {of}",
            "their weights are quantized by their own ranges, and nothing that they would read or "
            "do is in the input ranges or the scores",
        ),
        (
            few,
            f"{len(few)} {of} saw fewer than {FLOOR} calibration tokens",
            "the experts of a layer share their input ranges, so these rest on the tokens of "
            "others, and so does the score of the layer's experts; more captions reach more of "
            "them",
        ),
    )
    return tuple(f"{what}: {_named(experts)}; {why}" for experts, what, why in sentences if experts)


def _named(experts: Sequence[tuple[str, int, int]]) -> str:
    names = ", ".join(f"{name} {i} ({tokens})" for name, i, tokens in experts[:_NAMED])
    more = len(experts) - _NAMED
    return f"{names} and {more} more" if more > 0 else names


def _count(counts: dict[str, torch.Tensor], name: str, module: Any, args: Any) -> None:
    if len(args) != 3 or not hasattr(module, "num_experts"):
        return
    seen = args[1].flatten().bincount(minlength=module.num_experts)
    counts[name] = counts[name] + seen if name in counts else seen
