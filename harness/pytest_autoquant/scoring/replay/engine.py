"""The replay engine: capture a tape once, then score every config in one sweep over it.

A group's gradient score needs only the input, the output gradient and the weight of each member, so
the model runs once per calibration size. The quantizers are ModelOpt's own and act on copies: the
model is never converted.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

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
from pytest_autoquant.scoring.engine import Outcomes
from pytest_autoquant.scoring.progress import Progress
from pytest_autoquant.scoring.replay.experts.sweep_experts import sweep_experts
from pytest_autoquant.scoring.replay.fisher import DRAWS, LossChangeScorer
from pytest_autoquant.scoring.replay.layer_tapes import layer_bytes, layer_tapes
from pytest_autoquant.scoring.replay.memory import first_that_fits
from pytest_autoquant.scoring.replay.outcomes import REPLAY, replay_outcomes
from pytest_autoquant.scoring.replay.quantizers import replay_refusal
from pytest_autoquant.scoring.replay.recorder import capture
from pytest_autoquant.scoring.replay.sweep import (
    SweepPlan,
    SweepResult,
    output_change_scorer,
    plan_sweep,
    sweep_slice,
)
from pytest_autoquant.scoring.replay.tape import (
    KEPT_DRAWS,
    Tape,
    choose_device,
    estimate_bytes,
    hidden_range,
    joined,
    load_tape,
    save_tape,
    tape_fingerprint,
)
from pytest_autoquant.scoring.replay.token_slices import count_token_slices, token_slices
from pytest_autoquant.scoring.signal import Signal

#: Most tokens that run through the model, and are replayed, at a time once the GPU has run out of
#: memory.
FEWER_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    """Where the tape lives, and the most tokens at a time (None for no limit)."""

    tape_device: torch.device
    max_tokens: int | None


class ReplayEngine:
    """Scores many configs in one sweep over a tape."""

    name = REPLAY
    sweeps = True

    def __init__(
        self,
        model: LoadedModel,
        *,
        method: str = "gradient",
        tape_device: str = "auto",
        tape_folder: Path | None = None,
    ) -> None:
        """Read the layer groups of a model.

        Args:
            method: ``gradient``, ModelOpt's formula, or ``fisher``; see ``fisher``.
            tape_device: see ``tape.choose_device``.
            tape_folder: where tapes are kept for later runs; None to keep none.
        """
        self._model = model
        self._is_fisher = method == "fisher"
        self._draws = DRAWS if self._is_fisher else 0
        self._tape_device = tape_device
        self._tape_folder = tape_folder
        self._groups = layer_groups(model)
        self._elsewhere = scored_elsewhere(model)
        self._experts = next((each.name for each in model.linears if each.is_fused), None)

    def refuses(self, config: EffectiveConfig) -> str | None:
        """Return why a config cannot be replayed, None if it can."""
        if self._elsewhere is not None:
            return f"ModelOpt scores {self._elsewhere} at the output of a mixture of experts"
        if self._is_fisher and self._experts is not None:
            return f"fisher does not score fused experts, such as {self._experts}"
        return replay_refusal(config)

    def score(
        self, configs: Sequence[EffectiveConfig], data: CalibrationData, progress: Progress
    ) -> Outcomes:
        """Score configs; see ``Engine.score``.

        When the GPU runs out of memory, tries again with fewer tokens at a time, then with the
        tape in host memory.

        Raises:
            NotReplayableError: see ``recorder.capture``.
            MeasurementError: the stored tape cannot be used; see ``tape.load_tape``.
            WriteError: the tape cannot be stored.
        """
        is_layered = self._model.is_offloaded and self._tape_folder is None
        size = (layer_bytes if is_layered else estimate_bytes)(self._model, data, self._draws)
        device = choose_device(self._tape_device, self._model, size)
        attempts = (
            _Attempt(tape_device=device, max_tokens=None),
            _Attempt(tape_device=device, max_tokens=FEWER_TOKENS),
            _Attempt(tape_device=torch.device("cpu"), max_tokens=FEWER_TOKENS),
        )
        return first_that_fits(
            attempts,
            lambda attempt: self._score(configs, data, attempt, progress),
            configs,
            partial(self._out_of_memory, data),
        )

    def _out_of_memory(self, data: CalibrationData, reason: str) -> MeasurementError:
        gibibytes = estimate_bytes(self._model, data, self._draws) / 2**30
        return MeasurementError(
            f"out of memory with the tape (up to {gibibytes:.1f} GiB) in host memory and "
            f"{FEWER_TOKENS} tokens at a time: {reason}; use fewer captions (--aq-score-size) or "
            "a GPU with more memory"
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
        if attempt.max_tokens is not None:
            data = data.split(attempt.max_tokens)
        plan, result, sweeping = plan_sweep(configs), SweepResult(), 0.0
        swept: list[Tape] = []
        for tape in self._tapes(data, attempt.tape_device, progress):
            captured = time.perf_counter()
            self._sweep(plan, tape, result, attempt.max_tokens, progress)
            synchronize(self._model.device)
            sweeping += time.perf_counter() - captured
            if not swept:  # that of the last layer, or of all: what a whole tape ends with
                plan.keep_descriptions()
            tape = replace(tape, inputs={}, gradients={})  # the next one needs the memory
            swept.append(tape)
        tape = joined(swept)
        scores = CaptionScores(result.by_group(self._groups), self._groups, data)
        timing = {"capture": time.perf_counter() - started - sweeping, "sweep": sweeping}
        return replay_outcomes(
            plan,
            scores,
            result.failures,
            timing=timing,
            peak_cuda_bytes=peak_cuda_bytes(self._model.device),
            signal=self._signal(tape),
            ranges=_ranges(tape),
            notes=(*_draw_notes(tape), *_gradient_notes(tape)),
            expert_tokens={name: each.counts.tolist() for name, each in tape.routing.items()},
        )

    def _tapes(
        self, data: CalibrationData, device: torch.device, progress: Progress
    ) -> Iterator[Tape]:
        """Yield the tape of a size, layer by layer where the model is offloaded."""
        if self._tape_folder is not None:
            yield self._kept_tape(self._tape_folder, data, device, progress)
        elif self._model.is_offloaded:
            yield from layer_tapes(self._model, data, device, progress, self._draws)
        else:
            yield capture(self._model, data, device, progress, self._draws)

    def _kept_tape(
        self, folder: Path, data: CalibrationData, device: torch.device, progress: Progress
    ) -> Tape:
        """Return the tape of a size, from the tape folder if it holds it, else captured."""
        fingerprint = tape_fingerprint(self._model, data, self._draws)
        name = f"{self._model.record.name}-{data.captions.size}-{fingerprint.digest}"
        path = folder / f"{name}.tape.safetensors"
        if path.exists():
            pinned = self._model.device.type == "cuda" and device.type == "cpu"
            return load_tape(path, fingerprint, device, pinned=pinned)
        if self._model.is_offloaded:
            tapes = list(layer_tapes(self._model, data, device, progress, self._draws))
            tape = joined(tapes)
        else:
            tape = capture(self._model, data, device, progress, self._draws)
        save_tape(tape, path)
        return tape

    def _sweep(
        self,
        plan: SweepPlan,
        tape: Tape,
        result: SweepResult,
        max_tokens: int | None,
        progress: Progress,
    ) -> None:
        total = count_token_slices(tape, max_tokens)
        linears = [linear.name for linear in self._model.linears if linear.name in tape.source]
        slices = token_slices(tape, linears, self._model.device, max_tokens)
        scorer_of = LossChangeScorer if self._is_fisher else output_change_scorer
        with torch.no_grad():
            for done, token_slice in enumerate(slices):
                progress("sweep", done, total)
                if token_slice.routing is not None:
                    sweep_experts(plan, token_slice, self._model.module, result)
                else:
                    sweep_slice(plan, token_slice, self._model.module, result, scorer_of)

    def _signal(self, tape: Tape) -> Signal:
        return Signal(
            dead=self._model.dead,
            unfed=self._in_module_order(tape.zero_inputs),
            unmoved=self._in_module_order(tape.zero_gradients),
        )

    def _in_module_order(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(linear.name for linear in self._model.linears if linear.name in names)


def _ranges(tape: Tape) -> dict[str, torch.Tensor]:
    """Return the largest magnitudes that each linear reads; see ``Measurement.ranges``."""
    hidden = (hidden_range(name) for name in tape.routing)
    own = {name: tape.amax[source] for name, source in tape.source.items()}
    return own | {name: tape.amax[name] for name in hidden}


def _draw_notes(tape: Tape) -> tuple[str, ...]:
    draws = tape.fingerprint.draws
    if not draws:
        return ()
    return (
        f"gradients were drawn from the Fisher information of the predictions {draws} times per "
        f"caption for q/k/v, {min(draws, KEPT_DRAWS)} times for other linears",
    )


def _gradient_notes(tape: Tape) -> tuple[str, ...]:
    names = tape.non_finite_gradients
    if not names:
        return ()
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return (f"gradients are not finite at {names[0]}{more}",)
