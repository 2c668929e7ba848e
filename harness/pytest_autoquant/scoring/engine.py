"""What every engine takes and returns; without torch."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pytest_autoquant.calibration.batches import CalibrationData
from pytest_autoquant.errors import AutoquantError
from pytest_autoquant.formats.effective_config import EffectiveConfig
from pytest_autoquant.manifests.records.sensitivity_manifest import GROUP_SUFFIX
from pytest_autoquant.scoring.progress import Progress
from pytest_autoquant.scoring.signal import Signal
from pytest_autoquant.text import in_words, one_line


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupScore:
    """One layer group as an engine scored it.

    Attributes:
        modules: members, in module order; ModelOpt names the group after the first.
        score: sum over members and scored tokens, not yet divided by the number of tokens. For
            ``gradient`` of (output gradient x output change)^2, for ``kl_div`` of the KL
            divergence in nats, for ``fisher`` of the squared change of the logits in the
            Fisher information of the predictions.
        quantized: whether every quantizer that the config enables was active in every member.
        per_caption: the score's parts by scored caption, in the order of
            ``CalibrationData.by_digest``; None if the engine does not tell captions apart.
    """

    modules: tuple[str, ...]
    score: float
    quantized: bool
    per_caption: tuple[float, ...] | None = None

    @property
    def name(self) -> str:
        """ModelOpt's key for the group."""
        return f"{self.modules[0]}{GROUP_SUFFIX}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What an engine measured for one effective config.

    Attributes:
        engine: name of the engine.
        groups: every searched layer group, in module order.
        quantizers: ModelOpt's description of the first linear's quantizers, by quantizer name.
        timing: seconds by phase; those of the whole sweep if configs were scored together.
        signal: linears of whose sensitivity a score of zero says nothing.
        notes: sentences for the reader of the result.
        state: ModelOpt's search state in its safe serialization, if requested.
        ranges: tensors by linear, ``(in_features,)``: largest |X| over all calibration tokens;
            empty if the engine does not record it.
        expert_tokens: by fused experts, the calibration tokens that each expert saw; None if the
            engine does not count them.
    """

    engine: str
    groups: tuple[GroupScore, ...]
    quantizers: Mapping[str, str]
    timing: Mapping[str, float]
    peak_cuda_bytes: int | None
    signal: Signal = field(default_factory=Signal)
    notes: tuple[str, ...] = ()
    state: bytes | None = None
    ranges: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    expert_tokens: Mapping[str, Sequence[int]] | None = None


def silent_groups(measurement: Measurement) -> tuple[str, ...]:
    """Return the groups that score zero because nothing passed through them, for no known cause."""
    return tuple(
        group.name
        for group in measurement.groups
        if group.score == 0 and measurement.signal.is_missing(group.modules)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a config could not be measured.

    Text only: an exception object would keep its frames alive, and with them the tape.
    """

    reason: str
    trace: str

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Describe an exception, one that a library raised with its type."""
        is_ours = isinstance(error, AutoquantError)
        return cls(
            reason=one_line(error, 300) if is_ours else in_words(error),
            trace="".join(traceback.format_exception(type(error), error, error.__traceback__)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeModelDivergence:
    """What one config does to the predictions when every layer group is quantized.

    Attributes:
        per_caption: KL divergence from the unquantized model in nats, summed over the predictions
            of each scored caption, in the order of ``CalibrationData.by_digest``.
        seconds: what measuring all configs together took.
    """

    per_caption: tuple[float, ...]
    seconds: float


#: The outcome of each config, by the config's digest.
Outcomes = Mapping[str, Measurement | Failure]


class Engine(Protocol):
    """Scores every layer group of one loaded model.

    Attributes:
        sweeps: whether scoring many configs together costs little more than scoring one.
    """

    name: str
    sweeps: bool

    def refuses(self, config: EffectiveConfig) -> str | None:
        """Return why this engine cannot score a config, None if it can."""

    def score(
        self, configs: Sequence[EffectiveConfig], data: CalibrationData, progress: Progress
    ) -> Outcomes:
        """Score each layer group under each config on the scored captions of ``data``.

        The model is bit for bit the same afterwards. An error that ModelOpt raises for one config
        becomes that config's ``Failure``.
        """
