"""The KL divergence of configs with every layer group quantized: what a sum of scores cannot see.

All configs walk through the decoder together, layer by layer. At each layer every distinct weight
is quantized once, the model's own forward runs with this layer alone, and the hidden state of each
config before the next layer is kept. Only the last layer runs on to the predictions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from pytest_autoquant.calibration.batches import CalibrationData
from pytest_autoquant.errors import NotReplayableError
from pytest_autoquant.formats.effective_config import EffectiveConfig
from pytest_autoquant.models.loading import LoadedModel
from pytest_autoquant.scoring.engine import Failure, WholeModelDivergence
from pytest_autoquant.scoring.kl_replay.decoder_layers import DecoderLayers
from pytest_autoquant.scoring.kl_replay.quantized_layer import QuantizedLayer
from pytest_autoquant.scoring.kl_replay.recording import RecordedBatch, Recording, record
from pytest_autoquant.scoring.progress import Progress
from pytest_autoquant.scoring.replay.memory import (
    Attempt,
    attempts,
    even_parts,
    first_that_fits,
    recording_out_of_memory,
)
from pytest_autoquant.scoring.replay.sweep import SweepPlan, Version, plan_sweep

#: Most bytes of a layer's quantized weights, of the hidden states of a block of configs, and of
#: what one forward pass makes.
_WEIGHT_BYTES = 3 << 30
_STATE_BYTES = 1 << 30
_OUTPUT_BYTES = 1 << 30


def measure_whole_model(
    model: LoadedModel,
    configs: Sequence[EffectiveConfig],
    data: CalibrationData,
    progress: Progress,
    ranges: Mapping[str, torch.Tensor] | None = None,
) -> Mapping[str, WholeModelDivergence | Failure]:
    """Measure the divergence of each config, by its digest, on the scored captions.

    Input quantizers are calibrated by the ranges that the unquantized model gives, as ModelOpt's
    ``max`` does. The model is bit for bit the same afterwards.

    Args:
        configs: those that ``quantizers.replay_refusal`` does not refuse.
        ranges: by linear, where they are known; see ``Measurement.ranges``.
    """
    try:
        return first_that_fits(
            attempts(model.device),
            lambda attempt: _measure(model, configs, data, attempt, progress, ranges),
            configs,
            recording_out_of_memory,
        )
    except NotReplayableError as error:
        why = str(error).partition(";")[0]  # what follows says what to do about scores
        failure = Failure(reason=f"the decoder cannot be run layer by layer: {why}", trace="")
    except Exception as error:  # scores are measured by now, and are not lost for this
        failure = Failure.of(error)
    return {config.digest: failure for config in configs}


def _measure(
    model: LoadedModel,
    configs: Sequence[EffectiveConfig],
    data: CalibrationData,
    attempt: Attempt,
    progress: Progress,
    ranges: Mapping[str, torch.Tensor] | None,
) -> dict[str, WholeModelDivergence | Failure]:
    started = time.perf_counter()
    layers, plan = DecoderLayers(model), plan_sweep(configs)
    recording = record(
        model, layers, data, attempt.device, progress, ranges=ranges, first_state_only=True
    )
    walk = _Walk(
        model=model, layers=layers, plan=plan, recording=recording, divisor=attempt.divisor
    )
    captions = sum(len(each.ids) for each in recording.batches)
    shape = (len(configs), captions)
    divergences = torch.zeros(shape, dtype=torch.float64, device=model.device)
    failures: dict[int, Failure] = {}
    blocks = list(walk.blocks())
    with torch.no_grad():
        for done, block in enumerate(blocks):
            on_layer = partial(_report, progress, done * len(layers), len(blocks) * len(layers))
            found = walk.divergences(block, failures, on_layer)
            divergences[[version.config for version in block]] = found
    by_digest = divergences[:, list(data.by_digest)].tolist()
    seconds = time.perf_counter() - started
    return {
        config.digest: failures.get(index)
        or WholeModelDivergence(
            per_caption=tuple(by_digest[index]),
            seconds=seconds,
        )
        for index, config in enumerate(configs)
    }


def _report(progress: Progress, before: int, total: int, layer: int) -> None:
    progress("whole-model KL", before + layer, total)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Walk:
    """Blocks of configs that walk through the decoder of one model on one recording.

    Attributes:
        divisor: divides the bytes at a time.
    """

    model: LoadedModel
    layers: DecoderLayers
    plan: SweepPlan
    recording: Recording
    divisor: int

    def blocks(self) -> Iterator[list[Version]]:
        """Yield the configs in blocks whose weights of a layer and whose hidden states fit."""
        weights = max(1, _WEIGHT_BYTES // self.divisor // self._layer_bytes())
        states = max(1, _STATE_BYTES // self.divisor // self._state_bytes())
        block: list[Version] = []
        for version in self.plan.versions:
            distinct = {each.weight for each in (*block, version)} - {None}
            if block and (len(distinct) > weights or len(block) == states):
                yield block
                block = []
            block.append(version)
        yield block

    def divergences(
        self,
        block: Sequence[Version],
        failures: dict[int, Failure],
        on_layer: Callable[[int], None],
    ) -> torch.Tensor:
        """Return the divergence of each config of a block, ``(versions, captions)``, in float64."""
        last = len(self.layers) - 1
        states = [self._first_states(each, len(block)) for each in self.recording.batches]
        for index in range(last):
            on_layer(index)
            with self.layers.resident(index):
                layer = self._quantized(index, block, failures)
                for recorded, before in zip(self.recording.batches, states, strict=True):
                    self._advance(layer, index, recorded, before)
        on_layer(last)
        with self.layers.resident(last):
            layer = self._quantized(last, block, failures)
            found = [
                self._finish(layer, last, recorded, before)
                for recorded, before in zip(self.recording.batches, states, strict=True)
            ]
        return torch.cat(found, dim=1)

    def _first_states(self, recorded: RecordedBatch, versions: int) -> torch.Tensor:
        """Return ``(versions, captions, tokens, hidden)``; before the first layer all are equal."""
        return recorded.states[0].to(self.model.device).repeat(versions, 1, 1, 1)

    def _quantized(
        self, index: int, block: Sequence[Version], failures: dict[int, Failure]
    ) -> QuantizedLayer:
        names = self.layers.linears_of(index)
        return QuantizedLayer(self.model, self.plan, names, self.recording.amax, block, failures)

    def _advance(
        self, layer: QuantizedLayer, index: int, recorded: RecordedBatch, states: torch.Tensor
    ) -> None:
        """Replace the states before a layer by those before the next, in place."""
        per_token = sum(
            linear.output_width for linear in self.model.linears if linear.name in layer.names
        )
        for part in self._parts(recorded, len(states), per_token * states.element_size()):
            keep = partial(_write, states[part])
            with self.layers.seen_before(index + 1, keep):
                self._run(layer, index, recorded, states, part)

    def _finish(
        self, layer: QuantizedLayer, index: int, recorded: RecordedBatch, states: torch.Tensor
    ) -> torch.Tensor:
        """Run the last layer and what comes after it; return ``(versions, captions)``."""
        reference = recorded.reference
        return torch.cat(
            [
                reference.divergences(self._run(layer, index, recorded, states, part))
                for part in self._parts(recorded, len(states), reference.bytes_per_token)
            ]
        )

    def _parts(self, recorded: RecordedBatch, versions: int, per_token: int) -> Iterator[slice]:
        """Yield slices of versions whose outputs, of so many bytes per token, fit."""
        size = recorded.ids.numel() * per_token
        return even_parts(versions, _OUTPUT_BYTES // self.divisor // size)

    def _run(
        self,
        layer: QuantizedLayer,
        index: int,
        recorded: RecordedBatch,
        states: torch.Tensor,
        part: slice,
    ) -> torch.Tensor:
        """Run one layer of some versions, and what the model does around it."""
        before = states[part].flatten(0, 1)
        ids = recorded.ids.repeat(len(states[part]), 1)
        is_last = index == len(self.layers) - 1
        with (
            self.layers.started_at(index, before, alone=not is_last),
            layer.answering(part),
        ):
            logits: torch.Tensor = self.model.module(input_ids=ids, use_cache=False).logits
        return logits

    def _layer_bytes(self) -> int:
        """Size of the largest layer's weights."""
        size = next(self.model.module.parameters()).element_size()
        totals = [0] * len(self.layers)
        for linear in self.model.linears:
            totals[self.layers.index_of(linear.name)] += linear.num_weights * size
        return max(totals)

    def _state_bytes(self) -> int:
        """Size of one version's hidden states."""
        return sum(each.states[0].nbytes for each in self.recording.batches)


def _write(states: torch.Tensor, index: int, hidden: torch.Tensor) -> None:
    states.copy_(hidden.view_as(states))
