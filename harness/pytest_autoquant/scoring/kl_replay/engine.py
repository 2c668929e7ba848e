"""``kl_div`` by replay: one group of one layer is quantized, the rest of the model runs on from it.

Stock AutoQuant runs the whole model once per group, config and batch. Here the layers before the
group's are answered by their recorded hidden state, the group's outputs are computed once per
distinct quantizer, and the model runs on with many configs in one batch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from pytest_autoquant.calibration.batches import CalibrationData
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
from pytest_autoquant.scoring.kl_replay.decoder_layers import DecoderLayers, LayerForward
from pytest_autoquant.scoring.kl_replay.quantized_group import QuantizedGroup, RecordedRun
from pytest_autoquant.scoring.kl_replay.recording import Recording, record
from pytest_autoquant.scoring.progress import Progress
from pytest_autoquant.scoring.replay.memory import (
    Attempt,
    attempts,
    first_that_fits,
    recording_out_of_memory,
)
from pytest_autoquant.scoring.replay.outcomes import REPLAY, replay_outcomes
from pytest_autoquant.scoring.replay.quantizers import replay_refusal
from pytest_autoquant.scoring.replay.sweep import SweepPlan, plan_sweep
from pytest_autoquant.scoring.signal import Signal
from pytest_autoquant.text import in_words

#: Operations of the sweep from which the layers are compiled on CUDA. Compiling takes about 20 s
#: once and saves more than a third of the time after that.
_COMPILED_FROM = 1e16


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
        is_fused: bool = False,
    ) -> None:
        """Read the layer groups of a model.

        Args:
            record_device: ``cpu`` to keep the recording in host memory, else the model's device.
            ranges: by linear, ``(in_features,)``: largest |X| of other captions, which calibrate
                instead of the measured ones; see ``recording.input_ranges``.
            is_fused: whether a group's linears share the range of a format that has one per linear,
                as they do in a runtime that fuses them.
        """
        self._model = model
        self._on_host = record_device == "cpu"
        self._ranges = ranges
        self._is_fused = is_fused
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
        device = torch.device("cpu") if self._on_host else self._model.device
        return first_that_fits(
            attempts(device),
            lambda attempt: self._score(configs, data, attempt, progress),
            configs,
            recording_out_of_memory,
        )

    def _score(
        self,
        configs: Sequence[EffectiveConfig],
        data: CalibrationData,
        attempt: Attempt,
        progress: Progress,
    ) -> Outcomes:
        started = time.perf_counter()
        reset_peak_cuda_bytes(self._model.device)
        layers, plan = DecoderLayers(self._model), plan_sweep(configs)
        recording = record(self._model, layers, data, attempt.device, progress, ranges=self._ranges)
        compiled, notes = self._compiled(layers, recording, len(configs), progress)
        recorded = RecordedRun(
            model=self._model,
            layers=layers,
            recording=recording,
            compiled=compiled,
            divisor=attempt.divisor,
            is_fused=self._is_fused,
        )
        synchronize(self._model.device)
        ready = time.perf_counter()
        sums = self._sweep(plan, recorded, progress)
        scores = CaptionScores(sums.divergences, self._groups, data)
        signal = Signal(dead=self._model.dead, unfed=recording.zero_inputs())
        timing = {"record": ready - started, "sweep": time.perf_counter() - ready}
        return replay_outcomes(
            plan,
            scores,
            sums.failures,
            timing=timing,
            peak_cuda_bytes=peak_cuda_bytes(self._model.device),
            signal=signal,
            notes=notes,
            ranges=recording.amax,
        )

    def _compiled(
        self, layers: DecoderLayers, recording: Recording, configs: int, progress: Progress
    ) -> tuple[LayerForward | None, tuple[str, ...]]:
        """Return the compiled forward of a layer where it pays, and notes on why not."""
        if not self._compiling_pays(layers, recording, configs):
            return None, ()
        progress("compile layers", 0, 1)
        batch, compiled = recording.batches[0], layers.compiled()
        start = layers.started_at(0, batch.states[0].to(self._model.device), compiled=compiled)
        try:
            with torch.no_grad(), start:
                self._model.module(input_ids=batch.ids, use_cache=False)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            return None, (f"torch.compile cannot compile the decoder layers: {in_words(error)}",)
        return compiled, ()

    def _compiling_pays(self, layers: DecoderLayers, recording: Recording, configs: int) -> bool:
        # A loop over experts would be compiled anew for every set of experts that a batch reaches.
        has_experts = any(linear.is_fused for linear in self._model.linears)
        if self._model.device.type != "cuda" or has_experts:
            return False
        runs = sum(len(layers) - layers.index_of(members[0]) - 1 for members in self._groups)
        tokens: int = sum(batch.ids.numel() for batch in recording.batches)
        weights = sum(linear.num_weights for linear in self._model.linears) / len(layers)
        return 2.0 * configs * runs * tokens * weights >= _COMPILED_FROM

    def _sweep(self, plan: SweepPlan, recorded: RecordedRun, progress: Progress) -> _Sums:
        captions = sum(len(each.ids) for each in recorded.recording.batches)
        shape = (len(self._groups), len(plan.configs), captions)
        divergences = torch.zeros(shape, dtype=torch.float64, device=self._model.device)
        sums = _Sums(divergences=divergences, failures={})
        inputs_of = lru_cache(maxsize=1)(recorded.layer_inputs)  # a layer's groups come together
        with torch.no_grad():
            for place, members in enumerate(self._groups):
                progress("KL divergence", place, len(self._groups))
                layer = recorded.layers.index_of(members[0])
                with recorded.layers.resident(layer):
                    group = QuantizedGroup(recorded, members, inputs_of(layer))
                    group.measure(plan, divergences[place], sums.failures)
        return sums
