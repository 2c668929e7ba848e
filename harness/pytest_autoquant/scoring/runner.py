"""The measuring side of a worker: one model, and every effective config scored at most once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from pytest_autoquant.calibration.batches import CalibrationData, calibration_data
from pytest_autoquant.calibration.captions import CaptionSet, load_captions
from pytest_autoquant.errors import (
    AutoquantError,
    MeasurementError,
    ModelError,
    NotReplayableError,
)
from pytest_autoquant.formats.effective_config import EffectiveConfig
from pytest_autoquant.grid.assignment import Assignment
from pytest_autoquant.grid.case import Case, Combination
from pytest_autoquant.manifests.fingerprint import (
    Difference,
    Fingerprint,
    differences,
    fingerprint,
)
from pytest_autoquant.manifests.records.outcomes import StructureCheck
from pytest_autoquant.manifests.records.score_check import ScoreCheck
from pytest_autoquant.manifests.records.sensitivity_manifest import (
    EnvironmentRecord,
    Manifest,
    RunConfig,
)
from pytest_autoquant.manifests.records.whole_model import WholeModelKL
from pytest_autoquant.modelopt_support.quiet import quiet
from pytest_autoquant.modelopt_support.status import Support
from pytest_autoquant.models.layers import (
    Architecture,
    Linear,
    bits_per_weight,
    load_architecture,
)
from pytest_autoquant.models.loading import LoadedModel, load_model
from pytest_autoquant.models.registry import ModelSource
from pytest_autoquant.options.run_plan import refuse_small_budget
from pytest_autoquant.options.settings import Settings
from pytest_autoquant.regression.recorded_model import RecordedModel
from pytest_autoquant.regression.resume import Earlier
from pytest_autoquant.scoring.build_manifest import (
    Findings,
    build_manifest,
)
from pytest_autoquant.scoring.configurations import Configurations
from pytest_autoquant.scoring.engine import Engine, Failure, Measurement, Outcomes
from pytest_autoquant.scoring.environment import environment_record, memory_record
from pytest_autoquant.scoring.kl_replay.engine import KLReplayEngine
from pytest_autoquant.scoring.kl_replay.recording import input_ranges
from pytest_autoquant.scoring.kl_replay.score_check import ScoreChecks, not_checked
from pytest_autoquant.scoring.kl_replay.whole_model_kl import WholeModels, not_measured
from pytest_autoquant.scoring.notes import (
    data_notes,
    error_bar_notes,
    length_notes,
    padding_notes,
    size_notes,
)
from pytest_autoquant.scoring.progress import Progress
from pytest_autoquant.scoring.replay.engine import ReplayEngine
from pytest_autoquant.scoring.stock import StockEngine

Warn = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One measured case.

    Attributes:
        state: ModelOpt's search state in its safe serialization, when it was asked for.
    """

    manifest: Manifest
    state: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenEngine:
    """The engine that scores a config on a size, and why that one."""

    engine: Engine
    reason: str


class MeasurementRunner:
    """Loads the model on first use and measures cases.

    Args:
        earlier: fingerprints of the cases that a resumed run may keep, by ``case_id``.
        recorded: whose results the report folder has under the model's name.
    """

    def __init__(
        self,
        settings: Settings,
        source: ModelSource,
        progress: Progress,
        warn: Warn,
        *,
        earlier: Earlier | None = None,
        recorded: RecordedModel | None = None,
    ) -> None:
        self._settings = settings
        self.source = source
        self._progress = progress
        self.warn = warn
        self._earlier: Earlier = earlier or {}
        self._recorded = recorded
        self._assignment = Assignment()
        self._originals: dict[tuple[str, str, str], Case] = {}
        self.configurations = Configurations(settings.device, settings.dtype, progress)
        self._model_error: AutoquantError | None = None
        self._unreplayable: dict[str, str] = {}
        self._data: dict[str, CalibrationData] = {}
        self._tokens: dict[str, str] = {}
        # By the digests of the token ids and of the config.
        self._outcomes: dict[tuple[str, str], Measurement | Failure] = {}
        self._checks = ScoreChecks(
            lambda: KLReplayEngine(self.model, record_device=settings.tape_device), progress
        )
        self._whole_models = WholeModels(lambda: self.model, progress)

    def assign(self, assignment: Assignment) -> None:
        """Set which cases the run selected and which of them this worker measures together."""
        self._assignment = assignment
        self._originals = {}

    @property
    def device(self) -> torch.device:
        """The device that cases run on."""
        return self.configurations.device

    def config(self, combination: Combination) -> EffectiveConfig:
        """Return the effective config of a pair under a granularity."""
        return self.configurations.config(combination)

    def support(self, combination: Combination) -> Support:
        """Return whether a pair under a granularity can run here, and if not why."""
        return self.configurations.support(combination)

    @cached_property
    def model(self) -> LoadedModel:
        """The model, loaded on first use; a failure is remembered rather than tried per case.

        Raises:
            ModelError: the model cannot be loaded, or its results would be mixed with another's.
        """
        if self._model_error is not None:
            raise self._model_error
        self._progress(f"load {self.source.name}", 0, 1)
        try:
            with quiet():
                model = load_model(
                    self.source,
                    device=self.device,
                    dtype=self.configurations.dtype,
                    random_seed=self._settings.random_seed,
                    trust_remote_code=self._settings.trust_remote_code,
                )
            if self._recorded is not None:
                self._recorded.refuse_another(model.record)
        except AutoquantError as error:
            self._model_error = error
            raise
        return model

    @cached_property
    def architecture(self) -> Architecture:
        """The model without its weights: layers and shapes, known before the model is loaded.

        Raises:
            ModelError: the model's config cannot be loaded.
        """
        with quiet():
            return load_architecture(
                self.source, trust_remote_code=self._settings.trust_remote_code
            )

    @cached_property
    def _known_linears(self) -> tuple[Linear, ...]:
        """The measured linears; none where the model's config is not on this machine."""
        if self.source.architecture is None and not self.source.is_local:
            return ()
        try:
            return self.architecture.linears
        except ModelError:  # loading the model says why
            return ()

    @property
    def multiplied(self) -> tuple[Linear, ...] | None:
        """The linears whose products this process computes; None on a GPU or where unknown."""
        if self.device.type != "cpu":
            return None
        return self.model.linears if "model" in vars(self) else self._known_linears or None

    def bits(self, combination: Combination) -> float:
        """Return the bits stored per weight of the model; nominal ones if no shape is known."""
        return bits_per_weight(self._known_linears, self.config(combination))

    def check(self, combination: Combination) -> StructureCheck:
        """Check a combination, also on the shapes of the model's layers where they are known.

        Raises:
            UsageError: see ``Configurations.config`` and ``Prober.check_config``.
        """
        return replace(
            self.configurations.check(combination),
            effective_bits=self.bits(combination),
            notes=tuple(
                f"{note}; a scheme leaves the format out where its export cannot pad"
                for note in padding_notes(self._known_linears, self.config(combination))
            ),
        )

    @cached_property
    def environment(self) -> EnvironmentRecord:
        """Versions and device of this process."""
        return environment_record(self.device, record_host=self._settings.record_host)

    @property
    def max_tokens(self) -> int:
        """Most tokens of a caption: what the option says, or what the model has positions for."""
        return min(self._settings.max_tokens, self.model.max_positions or self._settings.max_tokens)

    def data(self, size: str) -> CalibrationData:
        """Return the batches of a size; warns when there are fewer captions than it needs."""
        if size not in self._data:
            captions = load_captions(self._settings.captions, size)
            data = calibration_data(
                captions,
                self.model.tokenize,
                batch_size=self._settings.batch_size,
                score_size=self._settings.score_size,
                max_tokens=self.max_tokens,
            )
            for note in data_notes(data):
                self.warn(note)
            self._data[size] = data
            self._tokens[size] = data.tokens_sha256
        return self._data[size]

    def held_out(self, captions: CaptionSet, *, batch_size: int) -> CalibrationData:
        """Return the batches of held-out captions; warns when some cannot be used whole.

        Raises:
            CaptionError: no caption has two tokens.
        """
        data = calibration_data(
            captions,
            self.model.tokenize,
            batch_size=batch_size,
            score_size=len(captions.lines),
            max_tokens=self.max_tokens,
        )
        for note in length_notes(data):
            self.warn(note)
        return data

    def progress(self, phase: str, done: int, total: int) -> None:
        """Show how far a measurement is."""
        self._progress(phase, done, total)

    def damage_of_groups(
        self, configs: Sequence[EffectiveConfig], captions: CalibrationData, size: str
    ) -> Outcomes:
        """Measure the KL divergence of each layer group alone on captions that calibrate nothing.

        A size's captions calibrate. Linears of a group share the range of a format that has one per
        linear, as in a scheme. What cannot be measured is a failure of its config.
        """
        try:
            engine = KLReplayEngine(
                self.model,
                record_device=self._settings.tape_device,
                ranges=input_ranges(self.model, self.data(size).batches),
                is_fused=True,
            )
            refused = {
                config.digest: Failure(reason=reason, trace="")
                for config in configs
                if (reason := engine.refuses(config)) is not None
            }
            replayed = [config for config in configs if config.digest not in refused]
            outcomes = engine.score(replayed, captions, self._progress) if replayed else {}
            return {**refused, **outcomes}
        except Exception as error:  # a comparison that fails must not cost what it compares
            return {config.digest: Failure.of(error) for config in configs}

    def measure(self, case: Case) -> Measured:
        """Measure a case, or take its scores from what has been measured.

        An engine that sweeps scores the worker's whole batch with the first case of it.

        Raises:
            AutoquantError: the model cannot be loaded or the case cannot be measured.
        """
        started = time.perf_counter()
        self._check_budget()
        config, data = self.config(case.combination), self.data(case.size)
        measurement = self._measurement(case, config)
        original, linears = self._original(case), self.model.linears
        reason = self._choose(config, case.size).reason
        manifest = build_manifest(
            Findings(
                case=case,
                config=config,
                measurement=measurement,
                data=data,
                linears={linear.name: linear for linear in linears},
                others=self.model.others,
                alias_of=None if original == case else original.case_id,
                notes=(
                    *data_notes(data),
                    *error_bar_notes(measurement, data),
                    *size_notes(case.size, original.size),
                    *padding_notes(linears, config),
                    *measurement.notes,
                    *measurement.signal.notes(),
                ),
                model=self.model.record,
                environment=self.environment,
                memory=memory_record(measurement.peak_cuda_bytes),
                run_config=self._run_config(measurement.engine, reason, data),
                started=started,
                score_check=self._score_check(case, config, measurement),
                whole_model=self._whole_model(case, config, measurement),
            )
        )
        return Measured(manifest=manifest, state=measurement.state)

    def scores(self, size: str, combinations: Sequence[Combination]) -> tuple[Measurement, ...]:
        """Return what each combination measures on a size; missing ones are scored together.

        Raises:
            MeasurementError: one of them cannot be measured.
        """
        found = []
        for combination in combinations:
            config = self.config(combination)
            if self._key(size, config) not in self._outcomes:
                self._score(size, config, combinations)
            found.append(self._outcome(size, config, f"{combination.test_id}-{size}"))
        return tuple(found)

    def fingerprint(self, case: Case) -> Fingerprint:
        """Return the fingerprint that the case's manifest would have.

        Raises:
            AutoquantError: model, captions or preset cannot be loaded.
        """
        config, data = self.config(case.combination), self.data(case.size)
        chosen = self._choose(config, case.size)
        return fingerprint(
            case=case,
            config=config,
            captions=data,
            model=self.model.record,
            environment=self.environment,
            run=self._run_config(chosen.engine.name, chosen.reason, data),
        )

    def changes(self, case: Case) -> tuple[Difference, ...] | None:
        """Return what changed since the case was measured before, None if it never was.

        Raises:
            AutoquantError: model, captions or preset cannot be loaded.
        """
        before = self._earlier.get(case.case_id)
        return None if before is None else differences(before, self.fingerprint(case))

    def _check_budget(self) -> None:
        """Refuse a bit budget that no selected case can reach, before the model is loaded.

        The run itself is refused where the bits are known without ModelOpt.
        """
        try:
            bits = [
                self.config(case.combination).effective_bits for case in self._assignment.selected
            ]
        except AutoquantError:  # of another case, which fails by itself
            return
        refuse_small_budget(self._settings.effective_bits, min(bits, default=0.0))

    def _measurement(self, case: Case, config: EffectiveConfig) -> Measurement:
        if self._key(case.size, config) not in self._outcomes:
            batch = (other for other in self._assignment.batch_of(case) if not self._is_kept(other))
            self._score(case.size, config, (other.combination for other in batch))
        return self._outcome(case.size, config, case.test_id)

    def _is_kept(self, case: Case) -> bool:
        return self.changes(case) == ()

    def _original(self, case: Case) -> Case:
        """Return the first selected case with equal config and captions: it measures for all.

        Sizes hold the same captions where the file has too few for both.
        """
        if not self._originals:
            self._originals = self._first_by_config()
        return self._originals.get(self._measured_as(case), case)

    def _first_by_config(self) -> dict[tuple[str, str, str], Case]:
        found: dict[tuple[str, str, str], Case] = {}
        for case in self._assignment.selected:
            with suppress(AutoquantError):  # what cannot be measured measures for no other case
                if self.config(case.combination).no_effect is None:
                    found.setdefault(self._measured_as(case), case)
        return found

    def _measured_as(self, case: Case) -> tuple[str, str, str]:
        """Return what cases with equal scores share: captions, config and method."""
        return (*self._key(case.size, self.config(case.combination)), case.method)

    def _key(self, size: str, config: EffectiveConfig) -> tuple[str, str]:
        _ = self.data(size)
        return self._tokens[size], config.digest

    def _score(self, size: str, config: EffectiveConfig, others: Iterable[Combination]) -> None:
        """Score a config; an engine that sweeps scores the others with it."""
        engine = self._choose(config, size).engine
        configs = {config.digest: config}
        if engine.sweeps:
            for combination in others:
                other = self.config(combination)
                if self._can_join(other, engine):
                    configs.setdefault(other.digest, other)
        try:
            outcomes = engine.score(list(configs.values()), self.data(size), self._progress)
        except NotReplayableError as error:
            if self._settings.engine == "replay":
                raise
            self._unreplayable[size] = str(error)
            self._score(size, config, ())  # stock AutoQuant takes one case at a time
            return
        for digest, outcome in outcomes.items():
            self._outcomes[self._tokens[size], digest] = outcome
        if engine.sweeps:
            self._checks.add(self._tokens[size], configs)
            self._whole_models.add(self._tokens[size], configs)

    def _can_join(self, config: EffectiveConfig, engine: Engine) -> bool:
        is_supported = self.configurations.config_support(config).is_supported
        return is_supported and engine.refuses(config) is None

    def _outcome(self, size: str, config: EffectiveConfig, name: str) -> Measurement:
        outcome = self._outcomes[self._key(size, config)]
        if isinstance(outcome, Measurement):
            return outcome
        raise MeasurementError(f"{name} could not be measured: {outcome.reason}", outcome.trace)

    def _score_check(
        self, case: Case, config: EffectiveConfig, measurement: Measurement
    ) -> ScoreCheck | str | None:
        """Return the check of a case's scores, or why there is none; None by ``kl_div``."""
        if case.method != "gradient":
            return None
        reason = not_checked(
            self._settings.check_scores, self.source, case.size, measurement.engine
        )
        return reason or self._checks.check(config, measurement.groups, self.data(case.size))

    def _whole_model(
        self, case: Case, config: EffectiveConfig, measurement: Measurement
    ) -> WholeModelKL | str:
        """Return the divergence with every group quantized, or why there is none."""
        wanted = self._settings.whole_model_kl is not False
        reason = not_measured(wanted, measurement.engine)
        data = self.data(case.size)
        return reason or self._whole_models.measure(config, measurement, data, case.method)

    @cached_property
    def _stock(self) -> StockEngine:
        return StockEngine(
            self.model, method=self._settings.method, save_state=self._settings.save_state
        )

    @cached_property
    def _replay(self) -> Engine:
        device = self._settings.tape_device
        if self._settings.method == "kl_div":
            return KLReplayEngine(self.model, record_device=device)
        return ReplayEngine(self.model, tape_device=device, tape_folder=self._settings.tape_dir)

    def _choose(self, config: EffectiveConfig, size: str) -> ChosenEngine:
        """Choose the engine for a config on a size.

        Raises:
            MeasurementError: ``--aq-engine replay`` for what only stock AutoQuant can score.
        """
        if self._settings.engine == "modelopt":
            return ChosenEngine(engine=self._stock, reason="asked for with --aq-engine")
        refusal = self._replay_refusal(config, size)
        if refusal is None:
            reason = "scores every config of a size in one sweep"
            return ChosenEngine(engine=self._replay, reason=reason)
        if self._settings.engine == "replay":
            raise MeasurementError(f"--aq-engine replay cannot score this case: {refusal}")
        reason = f"the replay engine cannot score this case: {refusal}"
        return ChosenEngine(engine=self._stock, reason=reason)

    def _replay_refusal(self, config: EffectiveConfig, size: str) -> str | None:
        if self._settings.save_state:
            return "--aq-save-state asks for ModelOpt's own search state"
        return self._unreplayable.get(size) or self._replay.refuses(config)

    def _run_config(self, engine: str, reason: str, data: CalibrationData) -> RunConfig:
        return RunConfig(
            engine=engine,
            engine_reason=reason,
            device=self.device.type,
            dtype=self.model.record.dtype,
            weights=self.model.record.weights,
            batch_size=data.batch_size,
            score_size=self._settings.score_size,
            effective_bits=self._settings.effective_bits,
            seed=self._settings.seed,
        )
