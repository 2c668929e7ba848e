"""Which engine scores a config: replay where it can, stock AutoQuant where it cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from pytest_autoquant.errors import MeasurementError, NotReplayableError
from pytest_autoquant.formats.effective_config import EffectiveConfig
from pytest_autoquant.models.loading import LoadedModel
from pytest_autoquant.options.settings import Settings
from pytest_autoquant.scoring.engine import Engine
from pytest_autoquant.scoring.kl_replay.engine import KLReplayEngine
from pytest_autoquant.scoring.replay.engine import ReplayEngine
from pytest_autoquant.scoring.stock.engine import StockEngine


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenEngine:
    """The engine that scores a config on a size, and why that one."""

    engine: Engine
    reason: str


class Engines:
    """The engines of one run, each made on first use.

    Args:
        model: returns the model.
    """

    def __init__(self, settings: Settings, model: Callable[[], LoadedModel]) -> None:
        self._settings = settings
        self._model = model
        self._unreplayable: dict[str, str] = {}

    def choose(self, config: EffectiveConfig, size: str) -> ChosenEngine:
        """Choose the engine for a config on a size.

        Raises:
            MeasurementError: ``--aq-engine replay``, ``--aq-method fisher`` or an offloaded model
                for what only stock AutoQuant can score.
        """
        if self._settings.engine == "modelopt":
            return ChosenEngine(engine=self._stock, reason="asked for with --aq-engine")
        refusal = self._replay_refusal(config, size)
        if refusal is None:
            reason = "scores every config of a size in one sweep"
            return ChosenEngine(engine=self._replay, reason=reason)
        if self._has_to_replay:
            option = "engine replay" if self._settings.engine == "replay" else "method fisher"
            raise MeasurementError(f"--aq-{option} cannot score this case: {refusal}")
        if self._model().is_offloaded:
            raise MeasurementError(
                f"only stock AutoQuant could score this case ({refusal}), and it converts the "
                "model as a whole: give --aq-device-map single where one device can hold it"
            )
        reason = f"the replay engine cannot score this case: {refusal}"
        return ChosenEngine(engine=self._stock, reason=reason)

    def give_up_replay(self, size: str, error: NotReplayableError) -> None:
        """Choose stock AutoQuant for a size from now on.

        Raises:
            NotReplayableError: only replay may score.
        """
        if self._has_to_replay:
            raise error
        self._unreplayable[size] = str(error)

    def kl_replay(
        self, ranges: Mapping[str, torch.Tensor] | None = None, *, is_fused: bool = False
    ) -> KLReplayEngine:
        """Return what measures the KL divergence of groups; see ``KLReplayEngine``."""
        return KLReplayEngine(
            self._model(),
            record_device=self._settings.tape_device,
            ranges=ranges,
            is_fused=is_fused,
        )

    @cached_property
    def _stock(self) -> StockEngine:
        return StockEngine(
            self._model(), method=self._settings.method, save_state=self._settings.save_state
        )

    @cached_property
    def _replay(self) -> Engine:
        if self._settings.method == "kl_div":
            return self.kl_replay()
        return ReplayEngine(
            self._model(),
            method=self._settings.method,
            tape_device=self._settings.tape_device,
            tape_folder=self._settings.tape_dir,
        )

    @property
    def _has_to_replay(self) -> bool:
        return self._settings.engine == "replay" or self._settings.method == "fisher"

    def _replay_refusal(self, config: EffectiveConfig, size: str) -> str | None:
        if self._settings.save_state:
            return "--aq-save-state asks for ModelOpt's own search state"
        return self._unreplayable.get(size) or self._replay.refuses(config)
