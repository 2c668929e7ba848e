"""What the configs of a run scored on each size: every config at most once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pytest_autoquant.errors import MeasurementError, NotReplayableError
from pytest_autoquant.formats.effective_config import EffectiveConfig
from pytest_autoquant.grid.case import Combination
from pytest_autoquant.phases import PhaseClock
from pytest_autoquant.scoring.configurations import Configurations
from pytest_autoquant.scoring.engine import Engine, Failure, Measurement, Outcomes
from pytest_autoquant.scoring.engine_choice import Engines
from pytest_autoquant.scoring.progress import Progress
from pytest_autoquant.scoring.run_captions import RunCaptions


class ScoredConfigs:
    """Scores configs on sizes, those that an engine can sweep together.

    Sizes of the same captions share their scores.
    """

    def __init__(
        self,
        configurations: Configurations,
        captions: RunCaptions,
        engines: Engines,
        progress: Progress,
        clock: PhaseClock,
    ) -> None:
        self._configurations = configurations
        self._captions = captions
        self._engines = engines
        self._progress = progress
        self._clock = clock
        self._outcomes: dict[tuple[str, str], Measurement | Failure] = {}
        # By the digest of the token ids, then of the config.
        self._swept: dict[str, dict[str, EffectiveConfig]] = {}

    def key(self, size: str, config: EffectiveConfig) -> tuple[str, str]:
        """Return what equal scores share: the digests of the token ids and of the config."""
        return self._captions.tokens_of(size), config.digest

    def measurement(
        self, size: str, config: EffectiveConfig, name: str, others: Iterable[Combination]
    ) -> Measurement:
        """Return what a config scored; if it was not scored yet, score it.

        Args:
            name: of the case, for messages.
            others: what is scored with it by an engine that sweeps; read only then.

        Raises:
            MeasurementError: it cannot be scored.
            NotReplayableError: only replay may score, and cannot.
        """
        if self.key(size, config) not in self._outcomes:
            self._score(size, config, others)
        outcome = self._outcomes[self.key(size, config)]
        if isinstance(outcome, Measurement):
            return outcome
        raise MeasurementError(f"{name} could not be measured: {outcome.reason}", outcome.trace)

    def swept(self, size: str) -> Mapping[str, EffectiveConfig]:
        """Return the configs, by digest, that sweeps scored on the captions of a size."""
        return self._swept.get(self._captions.tokens_of(size), {})

    def _score(self, size: str, config: EffectiveConfig, others: Iterable[Combination]) -> None:
        engine = self._engines.choose(config, size).engine
        configs = {config.digest: config}
        if engine.sweeps:
            for combination in others:
                other = self._configurations.config(combination)
                if self._can_join(other, engine):
                    configs.setdefault(other.digest, other)
        data, tokens = self._captions.of_size(size), self._captions.tokens_of(size)
        try:
            with self._clock.phase("sweep"):
                outcomes = engine.score(list(configs.values()), data, self._progress)
        except NotReplayableError as error:
            self._engines.give_up_replay(size, error)
            self._score(size, config, ())  # stock AutoQuant takes one case at a time
            return
        self._count_capture(outcomes)
        for digest, outcome in outcomes.items():
            self._outcomes[tokens, digest] = outcome
            if engine.sweeps and isinstance(outcome, Measurement):
                self._swept.setdefault(tokens, {})[digest] = configs[digest]

    def _count_capture(self, outcomes: Outcomes) -> None:
        """Count what the sweep's configs shared before it as the phase that it is."""
        timing = next((o.timing for o in outcomes.values() if isinstance(o, Measurement)), {})
        captured = timing.get("capture", 0.0) + timing.get("record", 0.0)
        self._clock.move(captured, source="sweep", target="capture")

    def _can_join(self, config: EffectiveConfig, engine: Engine) -> bool:
        is_supported = self._configurations.config_support(config).is_supported
        return is_supported and engine.refuses(config) is None
