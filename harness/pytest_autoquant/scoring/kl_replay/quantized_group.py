"""One layer group, quantized by many configs while the rest of the model is not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from itertools import takewhile
from typing import Any

import torch
from torch.nn import functional

from pytest_autoquant.models.layers import weight_matrices
from pytest_autoquant.models.loading import LoadedModel
from pytest_autoquant.models.restore import forward_replaced
from pytest_autoquant.scoring.engine import Failure
from pytest_autoquant.scoring.kl_replay.decoder_layers import DecoderLayers, LayerForward
from pytest_autoquant.scoring.kl_replay.recording import RecordedBatch, Recording, linear_inputs
from pytest_autoquant.scoring.replay.experts.products import experts_output
from pytest_autoquant.scoring.replay.experts.sweep_experts import quantized_experts, quantized_input
from pytest_autoquant.scoring.replay.memory import even_parts
from pytest_autoquant.scoring.replay.quantizers import shared_range
from pytest_autoquant.scoring.replay.sweep import Attributes, SweepPlan
from pytest_autoquant.scoring.replay.tape import hidden_range

#: Most bytes of logits that one forward pass makes, and of quantized weights that one block of
#: configs keeps. Their sum with the recording is what the engine needs beside the model.
_LOGITS_BYTES = 2 << 30
_WEIGHT_BYTES = 3 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRun:
    """A model and what was recorded as it ran.

    Attributes:
        compiled: what unquantized layers run in place of their own forward, if anything.
        divisor: by what the bytes at a time are divided.
        is_fused: whether a group's linears share the range of a format that has one per linear.
    """

    model: LoadedModel
    layers: DecoderLayers
    recording: Recording
    compiled: LayerForward | None
    divisor: int
    is_fused: bool

    def layer_inputs(self, layer: int) -> dict[str, torch.Tensor]:
        """Return the inputs of a layer's linears over all scored batches, by name.

        Each is ``(tokens, in_features)``, in the order in which the linears run. The layer runs
        alone on its recorded hidden states.
        """
        names = self.layers.linears_of(layer)
        parts: dict[str, list[torch.Tensor]] = {}
        for recorded in self.recording.batches:
            state = recorded.states[layer].to(self.model.device)
            with self.layers.started_at(layer, state, alone=True):
                inputs = linear_inputs(self.model, recorded.ids, names)
            for name, x in inputs.items():
                parts.setdefault(name, []).append(x)
        return {name: torch.cat(each) for name, each in parts.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class _QuantizedVersion:
    """The group as one config quantizes it.

    Attributes:
        config: index of the config in the sweep.
        weights: by member, ``(out_features, in_features)``; ``ExpertMatrices`` of fused experts.
        inputs: by member, ``(tokens, in_features)`` over all scored batches; ``ExpertInput`` of
            fused experts.
    """

    config: int
    weights: dict[str, Any]
    inputs: dict[str, Any]


class QuantizedGroup:
    """One layer group of a recorded model.

    Args:
        members: names of the group's linears.
        inputs: of the linears of the group's layer; see ``RecordedRun.layer_inputs``.
    """

    def __init__(
        self, recorded: RecordedRun, members: Sequence[str], inputs: dict[str, torch.Tensor]
    ) -> None:
        self._recorded, self._members = recorded, members
        self._model, self._recording = recorded.model, recorded.recording
        self._layer = recorded.layers.index_of(members[0])
        self._linears = {name: self._model.module.get_submodule(name) for name in members}
        fused = {each.name for each in self._model.linears if each.is_fused}
        self._is_experts = not fused.isdisjoint(members)
        self._inputs = inputs
        self._before = {
            name: self._model.module.get_submodule(name)
            for name in takewhile(lambda name: name not in members, inputs)
            if name not in fused
        }

    def measure(
        self, plan: SweepPlan, divergences: torch.Tensor, failures: dict[int, Failure]
    ) -> None:
        """Write the divergence of each config that has not failed.

        Args:
            divergences: ``(configs, captions)``, written.
            failures: by index of the config; those of this group are added.
        """
        for block in self._blocks(plan):
            versions = self._versions(plan, block, failures)
            places = torch.tensor([each.config for each in versions], device=divergences.device)
            first = 0
            for batch in self._recording.batches:
                captions = slice(first, first + len(batch.ids))
                first = captions.stop
                for part in even_parts(len(versions), self._versions_at_a_time(batch)):
                    divergences[places[part], captions] = self._run_on(batch, versions[part])

    def _blocks(self, plan: SweepPlan) -> Iterator[list[Attributes]]:
        """Yield the weight quantizers in blocks whose quantized weights fit."""
        members = self._linears.values()
        size = sum(matrix.nbytes for each in members for matrix in weight_matrices(each))
        weights = list(plan.products)
        for part in even_parts(len(weights), _WEIGHT_BYTES // self._recorded.divisor // size):
            yield weights[part]

    def _versions(
        self, plan: SweepPlan, block: Sequence[Attributes], failures: dict[int, Failure]
    ) -> list[_QuantizedVersion]:
        """Quantize with each config of a block that has not failed."""
        quantized_weight = cache(partial(self._quantized_weight, plan))
        quantized_input = cache(partial(self._quantized_input, plan))
        versions = []
        for weight in block:
            for product in plan.products[weight]:
                if product.config in failures:
                    continue
                try:
                    version = _QuantizedVersion(
                        config=product.config,
                        weights={name: quantized_weight(name, weight) for name in self._linears},
                        inputs={
                            name: quantized_input(name, product.input) for name in self._linears
                        },
                    )
                except torch.OutOfMemoryError:
                    raise
                except Exception as error:
                    failures[product.config] = Failure.of(error)
                else:
                    versions.append(version)
        return versions

    def _quantized_weight(self, plan: SweepPlan, name: str, attributes: Attributes) -> Any:
        if self._is_experts:
            return quantized_experts(plan, self._linears[name], attributes)
        weight: torch.Tensor = self._linears[name].weight
        return plan.quantized_weight(attributes, weight, self._shared_range(attributes))

    def _shared_range(self, attributes: Attributes) -> torch.Tensor | None:
        """Return the range that the group's linears share, None where each has its own."""
        if not self._recorded.is_fused:
            return None
        weights = [linear.weight.detach() for linear in self._linears.values()]
        return shared_range(attributes, weights)

    def _quantized_input(self, plan: SweepPlan, name: str, attributes: Attributes) -> Any:
        x, amax = self._inputs[name], self._recording.amax[name]
        if self._is_experts:
            hidden_amax = self._recording.amax[hidden_range(name)]
            return quantized_input(plan, attributes, x, amax, hidden_amax)
        return plan.quantized_input(attributes, x, amax, self._recording.num_tokens)

    def _versions_at_a_time(self, batch: RecordedBatch) -> int:
        size: int = batch.ids.numel() * batch.reference.bytes_per_token
        return _LOGITS_BYTES // self._recorded.divisor // size

    def _run_on(self, batch: RecordedBatch, versions: Sequence[_QuantizedVersion]) -> torch.Tensor:
        """Run the model from the group's layer on; return ``(versions, captions)``.

        The layer's linears before the group answer every version with their one output.
        """
        ids = batch.ids.repeat(len(versions), 1)
        state = batch.states[self._layer].to(self._model.device).repeat(len(versions), 1, 1)
        start = self._recorded.layers.started_at(
            self._layer, state, compiled=self._recorded.compiled
        )
        with ExitStack() as stack:
            stack.enter_context(start)
            for name, linear in self._linears.items():
                if self._is_experts:
                    answer = partial(_experts_answer, versions, name, linear, batch.rows)
                else:
                    output = _outputs(versions, name, linear, batch.rows)
                    answer = partial(_answer, output)
                stack.enter_context(forward_replaced(linear, answer))
            for name, linear in self._before.items():
                output = linear(self._inputs[name][batch.rows])
                repeated = output.repeat(len(versions), 1)
                stack.enter_context(forward_replaced(linear, partial(_answer, repeated)))
            logits = self._model.module(input_ids=ids, use_cache=False).logits
        return batch.reference.divergences(logits)


def _outputs(
    versions: Sequence[_QuantizedVersion], name: str, linear: torch.nn.Linear, rows: slice
) -> torch.Tensor:
    """Return a linear's quantized outputs on some tokens, ``(versions, tokens, out_features)``."""
    return torch.stack(
        [
            functional.linear(each.inputs[name][rows], each.weights[name], linear.bias)
            for each in versions
        ]
    )


def _answer(output: torch.Tensor, x: Any) -> torch.Tensor:
    """Return an output of all versions in place of a linear's own, in the shape of its input.

    A linear in a mixture block reads the tokens of all captions in one row.
    """
    return output.view(*x.shape[:-1], -1)


def _experts_answer(
    versions: Sequence[_QuantizedVersion],
    name: str,
    module: Any,
    rows: slice,
    x: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """Return the quantized outputs of fused experts, ``(versions x tokens, hidden)``.

    All versions have the routing of the unquantized model: only what comes after it differs.
    """
    tokens = len(x) // len(versions)
    return torch.cat(
        [
            experts_output(
                module,
                each.weights[name],
                each.inputs[name].rows(rows),
                experts[:tokens],
                weights[:tokens],
            )
            for each in versions
        ]
    )
