"""``kl_div`` by replay: one group of one layer is quantized, the rest of the model runs on from it.

Stock AutoQuant runs the whole model once per group, config and batch. Here the layers before the
group's are answered by their recorded hidden state, the group's outputs are computed once per
distinct quantizer, and the model runs on with many configs in one batch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch.nn import functional

from pytest_autoquant.calibration.batches import CalibrationData
from pytest_autoquant.errors import MeasurementError
from pytest_autoquant.formats.effective_config import EffectiveConfig
from pytest_autoquant.modelopt_support.layer_groups import layer_groups, scored_elsewhere
from pytest_autoquant.models.device import (
    peak_cuda_bytes,
    reset_peak_cuda_bytes,
    synchronize,
)
from pytest_autoquant.models.loading import LoadedModel
from pytest_autoquant.scoring.caption_scores import CaptionScores
from pytest_autoquant.scoring.engine import Failure, Outcomes
from pytest_autoquant.scoring.kl_replay.decoder_layers import DecoderLayers, forward_replaced
from pytest_autoquant.scoring.kl_replay.recording import (
    RecordedBatch,
    Recording,
    record,
    run_watched,
)
from pytest_autoquant.scoring.progress import Progress
from pytest_autoquant.scoring.replay.memory import first_that_fits
from pytest_autoquant.scoring.replay.outcomes import REPLAY, replay_outcomes
from pytest_autoquant.scoring.replay.quantizers import replay_refusal
from pytest_autoquant.scoring.replay.sweep import Attributes, SweepPlan, plan_sweep
from pytest_autoquant.scoring.signal import Signal

#: Most bytes of logits that one forward pass makes, and of quantized outputs that one block of
#: configs keeps. Their sum with the recording is what the engine needs beside the model.
_LOGITS_BYTES = 1 << 30
_OUTPUT_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    """Where the recording lives, and by what the bytes at a time are divided."""

    device: torch.device
    divisor: int


@dataclass(slots=True)
class _Sums:
    """Divergences so far.

    Attributes:
        divergences: ``(groups, configs, captions)`` in float64, on the model's device.
        failures: by index of the config; a config that failed is not measured any further.
    """

    divergences: torch.Tensor
    failures: dict[int, Failure]


class KLReplayEngine:
    """Measures the KL divergence of many configs in one sweep over the layer groups."""

    name = REPLAY
    sweeps = True

    def __init__(
        self,
        model: LoadedModel,
        *,
        record_device: str = "auto",
        ranges: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Read the layer groups of a model.

        Args:
            record_device: ``cpu`` to keep the recording in host memory, else the model's device.
            ranges: by linear, ``(in_features,)``: largest |X| of other captions, which calibrate
                instead of the measured ones; see ``recording.input_ranges``.
        """
        self._model = model
        self._on_host = record_device == "cpu"
        self._ranges = ranges
        self._groups = layer_groups(model)
        self._elsewhere = scored_elsewhere(model)

    def refuses(self, config: EffectiveConfig) -> str | None:
        """Return why a config cannot be replayed, None if it can."""
        if self._elsewhere is not None:
            return f"ModelOpt quantizes {self._elsewhere} inside a mixture of experts"
        return replay_refusal(config)

    def score(
        self, configs: Sequence[EffectiveConfig], data: CalibrationData, progress: Progress
    ) -> Outcomes:
        """Measure configs; see ``Engine.score``.

        When the GPU runs out of memory, tries again with a quarter at a time, then with less and
        the recording in host memory.

        Raises:
            NotReplayableError: the model cannot be started between its layers.
        """
        host = torch.device("cpu")
        device = host if self._on_host else self._model.device
        attempts = (
            _Attempt(device=device, divisor=1),
            _Attempt(device=device, divisor=4),
            _Attempt(device=host, divisor=16),
        )
        return first_that_fits(
            attempts,
            lambda attempt: self._score(configs, data, attempt, progress),
            configs,
            _out_of_memory,
        )

    def _score(
        self,
        configs: Sequence[EffectiveConfig],
        data: CalibrationData,
        attempt: _Attempt,
        progress: Progress,
    ) -> Outcomes:
        started = time.perf_counter()
        reset_peak_cuda_bytes(self._model.device)
        layers, plan = DecoderLayers(self._model), plan_sweep(configs)
        recording = record(self._model, layers, data, attempt.device, progress)
        if self._ranges is not None:
            recording = replace(recording, amax=self._ranges)
        synchronize(self._model.device)
        recorded = time.perf_counter()
        sums = self._sweep(plan, layers, recording, attempt.divisor, progress)
        scores = CaptionScores(sums.divergences, self._groups, data)
        signal = Signal(dead=self._model.dead, unfed=recording.zero_inputs())
        timing = {"record": recorded - started, "sweep": time.perf_counter() - recorded}
        return replay_outcomes(
            plan,
            scores,
            sums.failures,
            timing=timing,
            peak_cuda_bytes=peak_cuda_bytes(self._model.device),
            signal=signal,
        )

    def _sweep(
        self,
        plan: SweepPlan,
        layers: DecoderLayers,
        recording: Recording,
        divisor: int,
        progress: Progress,
    ) -> _Sums:
        captions = sum(len(each.batch.rows) for each in recording.batches)
        shape = (len(self._groups), len(plan.configs), captions)
        divergences = torch.zeros(shape, dtype=torch.float64, device=self._model.device)
        sums = _Sums(divergences=divergences, failures={})
        with torch.no_grad():
            for place, members in enumerate(self._groups):
                progress("KL divergence", place, len(self._groups))
                group = _Group(self._model, layers, recording, members, divisor)
                for block in group.blocks(plan):
                    group.measure(plan, block, sums.divergences[place], sums.failures)
        return sums


@dataclass(frozen=True, slots=True, kw_only=True)
class _Version:
    """A config, by its index in the sweep, and its quantizers."""

    config: int
    weight: Attributes
    input: Attributes


class _Group:
    """One layer group, quantized by every config while the rest of the model is not.

    Attributes:
        inputs: by member, ``(tokens, in_features)`` over all scored batches.
    """

    def __init__(
        self,
        model: LoadedModel,
        layers: DecoderLayers,
        recording: Recording,
        members: Sequence[str],
        divisor: int,
    ) -> None:
        self._model, self._layers, self._recording = model, layers, recording
        self._members, self._divisor = members, divisor
        self._layer = layers.index_of(members[0])
        self._linears = {name: model.module.get_submodule(name) for name in members}
        self._inputs = self._read_inputs()

    def _read_inputs(self) -> dict[str, torch.Tensor]:
        """Run the group's layer alone on its recorded hidden states."""
        parts: dict[str, list[torch.Tensor]] = {name: [] for name in self._members}
        for recorded in self._recording.batches:
            state = recorded.states[self._layer].to(self._model.device)
            with self._layers.started_at(self._layer, state, alone=True):
                inputs, _ = run_watched(self._model, recorded.batch, self._members)
            for name, x in inputs.items():
                parts[name].append(x)
        return {name: torch.cat(each) for name, each in parts.items()}

    def blocks(self, plan: SweepPlan) -> Iterator[list[_Version]]:
        """Yield the versions in blocks whose quantized outputs fit, one weight's together."""
        versions = [
            _Version(config=product.config, weight=weight, input=product.input)
            for weight, products in plan.products.items()
            for product in products
        ]
        size = sum(
            len(self._inputs[name]) * linear.weight.shape[0] * linear.weight.element_size()
            for name, linear in self._linears.items()
        )
        step = max(1, _OUTPUT_BYTES // self._divisor // size)
        for start in range(0, len(versions), step):
            yield versions[start : start + step]

    def measure(
        self,
        plan: SweepPlan,
        block: Sequence[_Version],
        divergences: torch.Tensor,
        failures: dict[int, Failure],
    ) -> None:
        """Write the divergence of each version to its config's, ``(configs, captions)``."""
        outputs, computed = self._outputs(plan, block, failures)
        if not computed:
            return
        first = 0
        for recorded in self._recording.batches:
            captions = slice(first, first + len(recorded.batch.rows))
            first = captions.stop
            step = self._versions_at_a_time(recorded)
            for start in range(0, len(computed), step):
                part = slice(start, start + step)
                indices = [version.config for version in computed[part]]
                divergences[indices, captions] = self._run_on(recorded, outputs, part, len(indices))

    def _outputs(
        self, plan: SweepPlan, block: Sequence[_Version], failures: dict[int, Failure]
    ) -> tuple[dict[str, torch.Tensor], list[_Version]]:
        """Return the members' quantized outputs, ``(versions, tokens, out_features)``."""
        quantized_weight = cache(partial(self._quantized_weight, plan))
        quantized_input = cache(partial(self._quantized_input, plan))
        rows: dict[str, list[torch.Tensor]] = {name: [] for name in self._members}
        computed = []
        for version in block:
            if version.config in failures:
                continue
            try:
                products = [
                    functional.linear(
                        quantized_input(name, version.input),
                        quantized_weight(name, version.weight),
                        linear.bias,
                    )
                    for name, linear in self._linears.items()
                ]
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                failures[version.config] = Failure.of(error)
                continue
            computed.append(version)
            for name, product in zip(self._members, products, strict=True):
                rows[name].append(product)
        if not computed:
            return {}, []
        return {name: torch.stack(each) for name, each in rows.items()}, computed

    def _quantized_weight(self, plan: SweepPlan, name: str, attributes: Attributes) -> torch.Tensor:
        weight: torch.Tensor = self._linears[name].weight
        quantizer = plan.weights[attributes]
        return weight if quantizer is None else quantizer.weight(weight)

    def _quantized_input(self, plan: SweepPlan, name: str, attributes: Attributes) -> torch.Tensor:
        x, quantizer = self._inputs[name], plan.inputs[attributes]
        if quantizer is None:
            return x
        amax = self._recording.amax[name]
        return quantizer.input(x, amax, self._recording.num_multi_caption_tokens)

    def _versions_at_a_time(self, recorded: RecordedBatch) -> int:
        size = recorded.batch.num_tokens * recorded.reference.bytes_per_token
        return max(1, _LOGITS_BYTES // self._divisor // size)

    def _run_on(
        self,
        recorded: RecordedBatch,
        outputs: dict[str, torch.Tensor],
        part: slice,
        versions: int,
    ) -> torch.Tensor:
        """Run the model from the group's layer on; return ``(versions, captions)``."""
        ids = self._model.tensor(recorded.batch).repeat(versions, 1)
        state = recorded.states[self._layer].to(self._model.device).repeat(versions, 1, 1)
        with ExitStack() as stack:
            stack.enter_context(self._layers.started_at(self._layer, state))
            for name, linear in self._linears.items():
                output = outputs[name][part, recorded.rows]
                shaped = output.reshape(*ids.shape, output.shape[-1])
                stack.enter_context(forward_replaced(linear, partial(_answer, shaped)))
            logits = self._model.module(input_ids=ids, use_cache=False).logits
        return recorded.reference.divergences(logits)


def _out_of_memory(reason: str) -> MeasurementError:
    return MeasurementError(
        f"out of memory with the recording in host memory: {reason}; use fewer captions "
        "(--aq-score-size) or a GPU with more memory"
    )


def _answer(output: torch.Tensor, x: Any) -> torch.Tensor:
    """Return a computed output in place of a linear's own."""
    return output
