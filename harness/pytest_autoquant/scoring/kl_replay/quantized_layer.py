"""The linears of one decoder layer, answering for many quantized versions of the model at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import groupby
from typing import Any

import torch

from pytest_autoquant.models.layers import expert_matrices
from pytest_autoquant.models.loading import LoadedModel
from pytest_autoquant.models.restore import forward_replaced
from pytest_autoquant.scoring.engine import Failure
from pytest_autoquant.scoring.replay.experts.products import ExpertInput, experts_output, unchanged
from pytest_autoquant.scoring.replay.experts.sweep_experts import quantized_experts, quantized_input
from pytest_autoquant.scoring.replay.sweep import Attributes, SweepPlan, Version
from pytest_autoquant.scoring.replay.tape import hidden_range


class QuantizedLayer:
    """One layer in every version of a block.

    A version whose quantizer raises goes on unquantized and is noted as a failure.

    Args:
        names: the layer's measured linears.
        amax: by linear, ``(in_features,)``: what calibrates static input quantizers.
        block: versions, those of one weight quantizer together.
        failures: by index of the config; written.
    """

    def __init__(
        self,
        model: LoadedModel,
        plan: SweepPlan,
        names: Sequence[str],
        amax: Mapping[str, torch.Tensor],
        block: Sequence[Version],
        failures: dict[int, Failure],
    ) -> None:
        self._plan, self._amax, self._block, self._failures = plan, amax, block, failures
        self.names = tuple(names)
        self._linears: dict[str, Any] = {name: model.module.get_submodule(name) for name in names}
        self._experts = {each.name for each in model.linears if each.is_fused}
        self._weights = {
            (name, attributes): self._weight(name, attributes)
            for attributes in dict.fromkeys(version.weight for version in block)
            for name in names
        }

    @contextmanager
    def answering(self, part: slice) -> Iterator[None]:
        """Let the linears answer for some versions, ``(versions x captions, tokens, features)``.

        Args:
            part: which versions of the block.
        """
        versions, read = self._block[part], _LastInput()
        with ExitStack() as stack:
            for name, linear in self._linears.items():
                if name in self._experts:
                    answer = partial(self._experts_answer, name, versions)
                else:
                    answer = partial(self._answer, name, versions, read)
                stack.enter_context(forward_replaced(linear, answer))
            yield

    def _answer(
        self, name: str, versions: Sequence[Version], read: _LastInput, x: Any
    ) -> torch.Tensor:
        if not read.is_same(x, self._amax[name]):
            rows = x.reshape(len(versions), -1, x.shape[-1])
            quantized = self._quantized_inputs(name, versions, rows)
            read.keep(x, self._amax[name], quantized)
        linear, rows, start = self._linears[name], read.quantized, 0
        output = x.new_empty((*rows.shape[:-1], len(linear.weight)))
        for attributes, group in groupby(versions, key=lambda version: version.weight):
            stop = start + len(list(group))
            weight = self._weights[name, attributes]
            torch.matmul(rows[start:stop], weight.T, out=output[start:stop])
            start = stop
        if linear.bias is not None:
            output += linear.bias
        return output.reshape(*x.shape[:-1], -1)

    def _quantized_inputs(
        self, name: str, versions: Sequence[Version], rows: torch.Tensor
    ) -> torch.Tensor:
        """Quantize what a linear reads in each version, ``(versions, tokens, in_features)``."""
        places: dict[Attributes, list[int]] = {}
        for place, version in enumerate(versions):
            places.setdefault(version.input, []).append(place)
        if set(places) == {None}:
            return rows
        quantized = torch.empty_like(rows)
        for attributes, which in places.items():
            quantized[which] = self._input(name, attributes, rows[which])
        return quantized

    def _input(self, name: str, attributes: Attributes, rows: torch.Tensor) -> torch.Tensor:
        tokens = rows.flatten(0, 1)
        try:
            found = self._plan.quantized_input(attributes, tokens, self._amax[name], len(tokens))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            self._fail(error, [each.config for each in self._block if each.input == attributes])
            return rows
        return found.view_as(rows)

    def _experts_answer(
        self,
        name: str,
        versions: Sequence[Version],
        x: torch.Tensor,
        experts: torch.Tensor,
        weights: torch.Tensor,
    ) -> torch.Tensor:
        """Answer for fused experts, ``(versions x tokens, hidden)``; each version is routed."""
        tokens = len(x) // len(versions)
        outputs = []
        for place, version in enumerate(versions):
            rows = slice(place * tokens, (place + 1) * tokens)
            matrices = self._weights[name, version.weight]
            read = self._expert_input(name, version.input, x[rows])
            module = self._linears[name]
            outputs.append(experts_output(module, matrices, read, experts[rows], weights[rows]))
        return torch.cat(outputs)

    def _expert_input(self, name: str, attributes: Attributes, x: torch.Tensor) -> ExpertInput:
        amax, hidden_amax = self._amax[name], self._amax[hidden_range(name)]
        try:
            return quantized_input(self._plan, attributes, x, amax, hidden_amax)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            self._fail(error, [each.config for each in self._block if each.input == attributes])
            return ExpertInput(x=x, on_hidden=unchanged)

    def _weight(self, name: str, attributes: Attributes) -> Any:
        try:
            return self._quantized_weight(name, attributes)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            self._fail(error, [each.config for each in self._block if each.weight == attributes])
            return self._plain(name)

    def _plain(self, name: str) -> Any:
        module = self._linears[name]
        return expert_matrices(module) if name in self._experts else module.weight

    def _quantized_weight(self, name: str, attributes: Attributes) -> Any:
        if name in self._experts:
            return quantized_experts(self._plan, self._linears[name], attributes)
        return self._plan.quantized_weight(attributes, self._plain(name))

    def _fail(self, error: Exception, configs: Sequence[int]) -> None:
        failure = Failure.of(error)
        for config in configs:
            self._failures.setdefault(config, failure)


class _LastInput:
    """The input that a linear read last, quantized: siblings read the same tensor."""

    def __init__(self) -> None:
        self._read: tuple[torch.Tensor, int, torch.Tensor] | None = None

    def is_same(self, x: torch.Tensor, amax: torch.Tensor) -> bool:
        """Whether another linear of the same ranges read the same values from the same tensor."""
        if self._read is None:
            return False
        seen, version, ranges = self._read
        return seen is x and version == x._version and torch.equal(ranges, amax)

    def keep(self, x: torch.Tensor, amax: torch.Tensor, quantized: torch.Tensor) -> None:
        """Remember an input, ``(versions x captions, tokens, in_features)``, and it quantized."""
        self._read, self.quantized = (x, x._version, amax), quantized
