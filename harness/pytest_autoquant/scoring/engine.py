"""What an engine takes and gives; no torch here."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pytest_autoquant.calibration.batches import CalibrationData
from pytest_autoquant.errors import AutoquantError
from pytest_autoquant.formats.effective_config import EffectiveConfig
from pytest_autoquant.scoring.progress import Progress
from pytest_autoquant.text import in_words, one_line


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupScore:
    """One layer group as scored.

    Attributes:
        modules: members, in module order; ModelOpt names the group after the first.
        score: sum over members and scored tokens, before division by the token count: of
            (output gradient x output change)^2 for ``gradient``, of the KL divergence in nats for
            ``kl_div``.
        quantized: whether every quantizer that the config enables was active in every member.
    """

    modules: tuple[str, ...]
    score: float
    quantized: bool

    @property
    def name(self) -> str:
        """ModelOpt's key for the group."""
        return f"{self.modules[0]}.quant_recipe"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What an engine measured for one effective config.

    Attributes:
        engine: which engine ran.
        groups: every searched layer group, in module order.
        quantizers: ModelOpt's description of the quantizers of the first linear.
        timing: seconds by phase; of the whole sweep where an engine scores many configs at once.
        notes: what a reader of the result has to know.
        state: ModelOpt's search state in its safe serialization, when it was asked for.
    """

    engine: str
    groups: tuple[GroupScore, ...]
    quantizers: Mapping[str, str]
    timing: Mapping[str, float]
    peak_cuda_bytes: int | None
    notes: tuple[str, ...] = ()
    state: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a config could not be measured.

    Text only: a kept exception would keep its frames alive, and with them a whole tape.
    """

    reason: str
    trace: str

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Describe a caught exception; a library's own is named with its type."""
        is_ours = isinstance(error, AutoquantError)
        return cls(
            reason=one_line(error, 300) if is_ours else in_words(error),
            trace="".join(traceback.format_exception(type(error), error, error.__traceback__)),
        )


Outcomes = Mapping[str, Measurement | Failure]
"""By config digest: what was measured, or why that config could not be."""


class Engine(Protocol):
    """Scores every layer group of one loaded model."""

    name: str
    sweeps: bool
    """Whether scoring many configs together costs little more than one."""

    def refuses(self, config: EffectiveConfig) -> str | None:
        """Say why this engine cannot score a config, None if it can."""

    def score(
        self, configs: Sequence[EffectiveConfig], data: CalibrationData, progress: Progress
    ) -> Outcomes:
        """Quantize each group with each config and score the damage on ``data``.

        The model is afterwards bit for bit what it was. What ModelOpt raises for one config is that
        config's outcome.
        """
