"""The replay engine: capture once, score every config by replaying each linear alone.

A group's gradient score only needs each member's input, output gradient and weight, so the model
runs once per size. The sweep goes linear by linear: each distinct weight quantizer runs once on the
weight, each distinct input quantizer once on the input, and every wanted pair is multiplied. The
quantizers are ModelOpt's own and never touch the model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional

from pytest_autoquant.calibration.batches import CalibrationData
from pytest_autoquant.errors import MeasurementError
from pytest_autoquant.formats.effective_config import EffectiveConfig
from pytest_autoquant.formats.quantizer import QuantizerAttributes
from pytest_autoquant.modelopt_support.layer_groups import layer_groups, scored_elsewhere
from pytest_autoquant.models.loading import LoadedModel, peak_cuda_bytes, release_cuda_memory
from pytest_autoquant.scoring.engine import Failure, GroupScore, Measurement, Outcomes
from pytest_autoquant.scoring.progress import Progress
from pytest_autoquant.scoring.replay.quantizers import ShapedQuantizers, replay_refusal
from pytest_autoquant.scoring.replay.recorder import capture
from pytest_autoquant.scoring.replay.score_kernel import LinearScorer
from pytest_autoquant.scoring.replay.tape import (
    Tape,
    choose_device,
    estimate_bytes,
    load_tape,
    save_tape,
    tape_fingerprint,
)
from pytest_autoquant.scoring.replay.token_slices import Strip, count_strips, strips

FEWER_TOKENS = 256
"""How many go through the model, and are replayed, at a time after running out of GPU memory."""

_REPLAYABLE_ALGORITHMS = (None, "max")

Quantizers = Mapping[QuantizerAttributes | None, ShapedQuantizers | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """The configs of a sweep and their distinct quantizers; the key None leaves values unquantized.

    ``pairs`` is by weight attributes: the (index of the config, input attributes) to multiply by.
    """

    configs: Sequence[EffectiveConfig]
    weights: Quantizers
    inputs: Quantizers
    pairs: Mapping[QuantizerAttributes | None, Sequence[tuple[int, QuantizerAttributes | None]]]


@dataclass(slots=True)
class Ledger:
    """Scores by linear, ``(configs,)`` each, and by config index what fell out."""

    scores: dict[str, torch.Tensor] = field(default_factory=dict)
    errors: dict[int, Failure] = field(default_factory=dict)

    def add(self, name: str, totals: torch.Tensor) -> None:
        """Take in a linear's scores over some of its tokens."""
        known = self.scores.get(name)
        self.scores[name] = totals if known is None else known + totals

    def by_config(self, count: int) -> list[dict[str, float]]:
        """Fetch every score from the device in one go, by config index and linear."""
        if not self.scores:
            return [{} for _ in range(count)]
        table = torch.stack(list(self.scores.values()), dim=1).tolist()
        return [dict(zip(self.scores, row, strict=True)) for row in table]


class ReplayEngine:
    """Scores many configs in one sweep over a tape."""

    name = "replay"
    sweeps = True

    def __init__(
        self, model: LoadedModel, *, tape_device: str = "auto", tape_folder: Path | None = None
    ) -> None:
        self._model = model
        self._tape_device = tape_device
        self._tape_folder = tape_folder
        self._groups = layer_groups(model)
        self._elsewhere = scored_elsewhere(model)

    def refuses(self, config: EffectiveConfig) -> str | None:
        """Say why a config cannot be replayed, None if it can."""
        if config.algorithm not in _REPLAYABLE_ALGORITHMS:
            return f"calibration algorithm {config.algorithm} needs more than recorded ranges"
        if self._elsewhere is not None:
            return f"ModelOpt scores {self._elsewhere} at the output of a mixture of experts"
        return replay_refusal(config)

    def score(
        self, configs: Sequence[EffectiveConfig], data: CalibrationData, progress: Progress
    ) -> Outcomes:
        """See ``Engine.score``. A config that raises loses only itself.

        Out of GPU memory, it tries again with fewer tokens at a time, then with the tape in host
        memory.
        """
        device = choose_device(self._tape_device, self._model, data)
        attempts = ((device, None), (device, FEWER_TOKENS), (torch.device("cpu"), FEWER_TOKENS))
        for tape_device, tokens in attempts:
            try:
                return self._score(configs, data, tape_device, tokens, progress)
            except torch.OutOfMemoryError as error:
                words = str(error).splitlines()[0]
            release_cuda_memory()
        gigabytes = estimate_bytes(self._model, data) / 2**30
        refusal = MeasurementError(
            f"out of memory with the tape (up to {gigabytes:.1f} GiB) in host memory and "
            f"{FEWER_TOKENS} tokens at a time: {words}; use fewer captions (--aq-score-size) or a "
            "larger device"
        )
        return {config.digest: Failure.of(refusal) for config in configs}

    def _score(
        self,
        configs: Sequence[EffectiveConfig],
        data: CalibrationData,
        device: torch.device,
        tokens: int | None,
        progress: Progress,
    ) -> Outcomes:
        started = time.perf_counter()
        if self._model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._model.device)
        tape = self._tape(data.split(tokens) if tokens else data, device, progress)
        captured = time.perf_counter()
        sweep = plan(configs)
        ledger = self._run(sweep, tape, tokens, progress)
        values = ledger.by_config(len(configs))
        finished = time.perf_counter()
        timing = {"capture": captured - started, "sweep": finished - captured}
        return {
            config.digest: ledger.errors.get(index)
            or self._measurement(config, sweep, values[index], timing, tape)
            for index, config in enumerate(configs)
        }

    def _tape(self, data: CalibrationData, device: torch.device, progress: Progress) -> Tape:
        """Return the tape of a size: from the tape folder if it is there, else captured."""
        if self._tape_folder is None:
            return capture(self._model, data, device, progress)
        fingerprint = tape_fingerprint(self._model, data)
        name = f"{self._model.record.name}-{data.captions.size}-{fingerprint.digest}"
        path = self._tape_folder / f"{name}.tape.safetensors"
        if path.exists():
            pinned = self._model.device.type == "cuda" and device.type == "cpu"
            return load_tape(path, fingerprint, device, pinned=pinned)
        tape = capture(self._model, data, device, progress)
        save_tape(tape, path)
        return tape

    def _run(self, sweep: Sweep, tape: Tape, tokens: int | None, progress: Progress) -> Ledger:
        ledger, total = Ledger(), count_strips(tape, tokens)
        linears = [linear.name for linear in self._model.linears]
        with torch.no_grad():
            for done, strip in enumerate(strips(tape, linears, self._model.device, tokens)):
                progress("sweep", done, total)
                self._replay(strip, sweep, ledger)
        return ledger

    def _replay(self, strip: Strip, sweep: Sweep, ledger: Ledger) -> None:
        """Score every config on the linears that read one input."""
        inputs = _Lazy(partial(_input_of, sweep.inputs, strip))
        for name, gradient in strip.gradients.items():
            linear = self._model.module.get_submodule(name)
            plain = functional.linear(strip.x, linear.weight, linear.bias)
            weights = _Lazy(partial(_weight_of, sweep.weights, linear.weight))
            scorer = LinearScorer(plain, gradient, linear.bias, versions=len(sweep.configs))
            for weight_key, wanted in sweep.pairs.items():
                for index, input_key in wanted:
                    if index in ledger.errors:
                        continue
                    try:
                        scorer.add(index, inputs[input_key], weights[weight_key])
                    except torch.OutOfMemoryError:
                        raise
                    except Exception as error:
                        ledger.errors[index] = Failure.of(error)
                weights.pop(weight_key, None)
            ledger.add(name, scorer.totals())

    def _measurement(
        self,
        config: EffectiveConfig,
        sweep: Sweep,
        values: Mapping[str, float],
        timing: Mapping[str, float],
        tape: Tape,
    ) -> Measurement:
        quantizers = {
            "weight_quantizer": sweep.weights[config.weight],
            "input_quantizer": sweep.inputs[config.input],
        }
        return Measurement(
            engine=self.name,
            groups=tuple(
                GroupScore(
                    modules=members,
                    score=sum(values[name] for name in members),
                    quantized=all(each is None or each.is_enabled for each in quantizers.values()),
                )
                for members in self._groups
            ),
            quantizers={
                name: "disabled" if each is None else each.describe()
                for name, each in quantizers.items()
            },
            timing=timing,
            peak_cuda_bytes=peak_cuda_bytes(self._model.device),
            notes=_broken_notes(tape),
        )


def plan(configs: Sequence[EffectiveConfig]) -> Sweep:
    """Find the distinct quantizers of the configs, and which pairs of them the configs use."""
    pairs: dict[QuantizerAttributes | None, list[tuple[int, QuantizerAttributes | None]]] = {}
    for index, config in enumerate(configs):
        pairs.setdefault(config.weight, []).append((index, config.input))
    return Sweep(
        configs=configs,
        weights=_quantizers(config.weight for config in configs),
        inputs=_quantizers(config.input for config in configs),
        pairs=pairs,
    )


def _quantizers(
    wanted: Iterable[QuantizerAttributes | None],
) -> dict[QuantizerAttributes | None, ShapedQuantizers | None]:
    return {each: None if each is None else ShapedQuantizers(each) for each in wanted}


class _Lazy(dict[QuantizerAttributes | None, torch.Tensor]):
    """Quantized tensors by attributes, each computed on first use."""

    def __init__(self, make: Callable[[QuantizerAttributes | None], torch.Tensor]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, key: QuantizerAttributes | None) -> torch.Tensor:
        self[key] = self._make(key)
        return self[key]


def _weight_of(
    quantizers: Quantizers, weight: torch.Tensor, key: QuantizerAttributes | None
) -> torch.Tensor:
    quantizer = quantizers[key]
    return weight if quantizer is None else quantizer.weight(weight)


def _input_of(
    quantizers: Quantizers, strip: Strip, key: QuantizerAttributes | None
) -> torch.Tensor:
    quantizer = quantizers[key]
    return strip.x if quantizer is None else quantizer.input(strip.x, strip.amax, strip.together)


def _broken_notes(tape: Tape) -> tuple[str, ...]:
    if not tape.broken:
        return ()
    more = f" and {len(tape.broken) - 1} more" if len(tape.broken) > 1 else ""
    return (f"gradients are not finite at {tape.broken[0]}{more}",)
