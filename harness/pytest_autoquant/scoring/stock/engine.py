"""The reference engine: ModelOpt's own ``mtq.auto_quantize``, one config at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch

from pytest_autoquant.calibration.batches import CalibrationData
from pytest_autoquant.errors import MeasurementError
from pytest_autoquant.formats.effective_config import UNQUANTIZED_BITS, EffectiveConfig
from pytest_autoquant.modelopt_support.private_api import (
    Quantizer,
    named_quantizers,
    searched_groups,
    serialized,
)
from pytest_autoquant.modelopt_support.quiet import quiet
from pytest_autoquant.models.device import peak_cuda_bytes, reset_peak_cuda_bytes, synchronize
from pytest_autoquant.models.loading import LoadedModel
from pytest_autoquant.models.next_token import next_token_logits, next_token_loss
from pytest_autoquant.models.restore import preserved
from pytest_autoquant.scoring.engine import Failure, GroupScore, Measurement, Outcomes
from pytest_autoquant.scoring.progress import Progress
from pytest_autoquant.scoring.stock.watch import watched

#: Calibration algorithms that do not change weights.
_KEEPS_WEIGHTS = (None, "max", "mse", "local_hessian")


class StockEngine:
    """Runs AutoQuant as documented, with a summed loss and batches without padding."""

    name = "modelopt"
    sweeps = False

    def __init__(self, model: LoadedModel, *, method: str, save_state: bool = False) -> None:
        self._model = model
        self._method = method
        self._save_state = save_state

    def refuses(self, config: EffectiveConfig) -> str | None:
        """Return None: this engine runs whatever ModelOpt supports."""
        return None

    def score(
        self, configs: Sequence[EffectiveConfig], data: CalibrationData, progress: Progress
    ) -> Outcomes:
        """Score configs one after the other; see ``Engine.score``."""
        return {config.digest: self._outcome(config, data, progress) for config in configs}

    def _outcome(
        self, config: EffectiveConfig, data: CalibrationData, progress: Progress
    ) -> Measurement | Failure:
        try:
            return self._measure(config, data, progress)
        except Exception as error:
            return Failure.of(error)

    def _measure(
        self, config: EffectiveConfig, data: CalibrationData, progress: Progress
    ) -> Measurement:
        clock = _Clock(self._model.device, progress, data)
        module = self._model.module
        reset_peak_cuda_bytes(self._model.device)
        is_changed = _algorithm(config) not in _KEEPS_WEIGHTS
        with preserved(module, weights=is_changed), quiet(), watched(self._model) as watch:
            state = self._auto_quantize(config, data, clock)
            groups, quantizers = self._read_groups(config)
            saved = serialized(state) if self._save_state and state is not None else None
        return Measurement(
            engine=self.name,
            groups=groups,
            quantizers=quantizers,
            timing=clock.finish(),
            peak_cuda_bytes=peak_cuda_bytes(self._model.device),
            signal=watch.signal(has_gradients=self._method == "gradient"),
            state=saved,
        )

    def _auto_quantize(self, config: EffectiveConfig, data: CalibrationData, clock: _Clock) -> Any:
        import modelopt.torch.quantization as mtq

        def forward_step(module: Any, batch: torch.Tensor) -> torch.Tensor:
            clock.forward()
            return next_token_logits(module, batch)

        def loss_func(logits: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
            return next_token_loss(logits, batch)

        try:
            _, state = mtq.auto_quantize(
                self._model.module,
                # Scores do not depend on the budget, and this package selects layers itself.
                constraints={"effective_bits": UNQUANTIZED_BITS},
                quantization_formats=[config.modelopt()],
                data_loader=[self._model.tensor(batch) for batch in data.batches],
                forward_step=forward_step,
                loss_func=loss_func if self._method == "gradient" else None,
                num_calib_steps=len(data.batches),
                num_score_steps=len(data.scored),
                disabled_layers=list(self._model.others),
                method=self._method,
                verbose=False,
            )
        except Exception:
            # ModelOpt's solver raises on scores that are not finite, but has computed them.
            if all(math.isfinite(group.score) for group in searched_groups(self._model.module)):
                raise
            return None
        return state

    def _read_groups(
        self, config: EffectiveConfig
    ) -> tuple[tuple[GroupScore, ...], dict[str, str]]:
        """Return the searched groups and the description of the first one's quantizers.

        Scores are read from the search's hparams: the search state's ``candidate_stats`` clamps
        each score to that of the next cheaper format.
        """
        module, known = self._model.module, {linear.name for linear in self._model.linears}
        groups: list[GroupScore] = []
        quantizers: dict[str, str] = {}
        for group in searched_groups(module):
            names = group.modules
            if not known.issuperset(names):
                raise MeasurementError(
                    f"ModelOpt replaces {names[0]} by modules of its own, which cannot be "
                    "measured; use a model without a mixture of experts"
                )
            group.activate()
            members = [module.get_submodule(name) for name in names]
            groups.append(
                GroupScore(
                    modules=names,
                    score=group.score,
                    quantized=all(_is_quantized(member, config) for member in members),
                )
            )
            quantizers = quantizers or _describe(members[0])
        return tuple(groups), quantizers


class _Clock:
    """Times phases and reports progress from ModelOpt's callbacks."""

    def __init__(self, device: torch.device, progress: Progress, data: CalibrationData) -> None:
        self._device = device
        self._progress = progress
        self._totals = {"calibrate": len(data.batches), "score": len(data.scored)}
        self._marks = [("prepare", time.perf_counter())]
        self._done = 0

    def forward(self) -> None:
        """Note that a forward pass begins: a scoring one if autograd or inference mode is on."""
        scoring = torch.is_grad_enabled() or torch.is_inference_mode_enabled()
        phase = "score" if scoring else "calibrate"
        if self._marks[-1][0] != phase:
            self._mark(phase)
            self._done = 0
        self._progress(phase, self._done, max(self._totals[phase], self._done))
        self._done += 1

    def finish(self) -> dict[str, float]:
        """Return seconds by phase; ``score`` includes ModelOpt's solver."""
        self._mark("end")
        timing: dict[str, float] = {}
        for (phase, start), (_, stop) in zip(self._marks, self._marks[1:], strict=False):
            timing[phase] = timing.get(phase, 0.0) + stop - start
        return timing

    def _mark(self, phase: str) -> None:
        synchronize(self._device)
        self._marks.append((phase, time.perf_counter()))


def _is_quantized(member: Any, config: EffectiveConfig) -> bool:
    wanted = {
        "weight_quantizer": config.weight is not None,
        "input_quantizer": config.input is not None,
    }
    return all(
        quantizer.is_enabled == is_wanted
        for kind, is_wanted in wanted.items()
        for quantizer in _quantizers(member, kind)
    )


def _describe(member: Any) -> dict[str, str]:
    kinds = ("weight_quantizer", "input_quantizer")
    return {kind: _quantizers(member, kind)[0].extra_repr() for kind in kinds}


def _quantizers(member: Any, kind: str) -> list[Quantizer]:
    """Return a module's quantizers of one kind: one, or one per matrix and expert if fused."""
    return [quantizer for name, quantizer in named_quantizers(member) if kind in name]


def _algorithm(config: EffectiveConfig) -> Any:
    algorithm = config.algorithm
    return algorithm.get("method") if isinstance(algorithm, dict) else algorithm
