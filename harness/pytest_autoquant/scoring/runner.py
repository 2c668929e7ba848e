"""The measuring side of a worker: one model, and every effective config scored at most once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from pytest_autoquant.allocation.scored_group import Cost
from pytest_autoquant.calibration.batches import CalibrationData
from pytest_autoquant.calibration.captions import CaptionSet
from pytest_autoquant.errors import (
    AutoquantError,
    ModelError,
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
from pytest_autoquant.phases import PhaseClock
from pytest_autoquant.regression.recorded_model import RecordedModel
from pytest_autoquant.regression.resume import Earlier
from pytest_autoquant.scoring.configurations import Configurations
from pytest_autoquant.scoring.engine import Failure, Measurement, Outcomes
from pytest_autoquant.scoring.engine_choice import Engines
from pytest_autoquant.scoring.kl_replay.recording import input_ranges
from pytest_autoquant.scoring.kl_replay.score_check import ScoreChecks, not_checked
from pytest_autoquant.scoring.kl_replay.whole_model_kl import WholeModels, not_measured
from pytest_autoquant.scoring.machine.environment import environment_record, memory_record
from pytest_autoquant.scoring.machine.model_places import offload_of
from pytest_autoquant.scoring.machine.warm_up import warming_up
from pytest_autoquant.scoring.manifest.build_manifest import (
    Findings,
    build_manifest,
)
from pytest_autoquant.scoring.manifest.expert_tokens import (
    ExpertCounts,
    count_expert_tokens,
    expert_notes,
    expert_tokens,
)
from pytest_autoquant.scoring.manifest.notes import (
    data_notes,
    error_bar_notes,
    padding_notes,
    size_notes,
)
from pytest_autoquant.scoring.progress import Progress
from pytest_autoquant.scoring.run_captions import RunCaptions, Warn
from pytest_autoquant.scoring.scored_configs import ScoredConfigs


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One measured case.

    Attributes:
        state: ModelOpt's search state in its safe serialization, when it was asked for.
    """

    manifest: Manifest
    state: bytes | None


class MeasurementRunner:
    """Loads the model on first use and measures cases.

    Args:
        earlier: fingerprints of the cases that a resumed run may keep, by ``case_id``.
        recorded: whose results the report folder has under the model's name.
        clock: of this process; by default one of its own.
        processes: how many processes share the memory of this host.
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
        clock: PhaseClock | None = None,
        processes: int = 1,
    ) -> None:
        self._settings = settings
        self.source = source
        self._progress = progress
        self.warn = warn
        self._earlier: Earlier = earlier or {}
        self._recorded = recorded
        self._clock = clock or PhaseClock()
        self._processes = processes
        self._assignment = Assignment()
        self._originals: dict[tuple[str, str, str], Case] = {}
        self._counted: dict[str, ExpertCounts] = {}
        self._least_bits: float | None = None
        self.configurations = Configurations(
            settings.device,
            settings.dtype,
            progress,
            self._clock,
            is_cached=settings.cache is not False,
        )
        self._model_error: AutoquantError | None = None
        self._captions = RunCaptions(settings, lambda: self.model, warn)
        self._engines = Engines(settings, lambda: self.model)
        self._scored = ScoredConfigs(
            self.configurations, self._captions, self._engines, progress, self._clock
        )
        self._checks = ScoreChecks(self._engines.kl_replay, progress)
        self._whole_models = WholeModels(
            lambda: self.model, progress, all_captions=settings.whole_model_kl is True
        )

    def assign(self, assignment: Assignment) -> None:
        """Set which cases the run selected and which of them this worker measures together."""
        self._assignment = assignment
        self._originals = {}
        self._least_bits = None

    @property
    def device(self) -> torch.device:
        """The device that cases run on."""
        return self.configurations.device

    @property
    def cost(self) -> Cost:
        """Which weights bit budgets count."""
        return self._settings.cost

    @property
    def method(self) -> str:
        """The method by which groups are scored."""
        return self._settings.method

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
        self.configurations.import_libraries()
        try:
            with quiet(), self._clock.phase("model"), self._warming_up():
                model = load_model(
                    self.source,
                    device=self.device,
                    dtype=self.configurations.dtype,
                    random_seed=self._settings.random_seed,
                    trust_remote_code=self._settings.trust_remote_code,
                    offload=offload_of(self._settings, self._processes),
                )
            if self._recorded is not None:
                self._recorded.refuse_another(model.record)
        except AutoquantError as error:
            self._model_error = error
            raise
        return model

    def _warming_up(self) -> AbstractContextManager[None]:
        widths = {linear.out_features for linear in self._known_linears}
        return warming_up(self.device, self.configurations.dtype, widths)

    @cached_property
    def architecture(self) -> Architecture:
        """The model without its weights: layers and shapes, known before the model is loaded.

        Raises:
            ModelError: the model's config cannot be loaded.
        """
        self.configurations.import_libraries()
        with quiet(), self._clock.phase("model"):
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

    def data(self, size: str) -> CalibrationData:
        """Return the batches of a size; warns when there are fewer captions than it needs."""
        return self._captions.of_size(size)

    def held_out(self, captions: CaptionSet, *, batch_size: int) -> CalibrationData:
        """Return the batches of held-out captions; see ``RunCaptions.held_out``."""
        return self._captions.held_out(captions, batch_size=batch_size)

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
            ranges = input_ranges(self.model, self.data(size).batches)
            engine = self._engines.kl_replay(ranges, is_fused=True)
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
        experts = self._expert_tokens(case.size, measurement)
        reason = self._engines.choose(config, case.size).reason
        findings = Findings(
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
                *expert_notes(experts),
                *measurement.notes,
                *measurement.signal.notes(),
            ),
            model=self.model.record,
            environment=self.environment,
            memory=memory_record(measurement.peak_cuda_bytes),
            run_config=self._run_config(measurement.engine, reason, data),
            started=started,
            expert_tokens=expert_tokens(experts, self.model),
            score_check=self._score_check(case, config, measurement),
            whole_model=self._whole_model(case, config, measurement),
        )
        with self._clock.phase("manifests"):
            manifest = build_manifest(findings, self._clock)
        return Measured(manifest=manifest, state=measurement.state)

    def scores(self, size: str, combinations: Sequence[Combination]) -> tuple[Measurement, ...]:
        """Return what each combination measures on a size; missing ones are scored together.

        Raises:
            MeasurementError: one of them cannot be measured.
        """
        return tuple(
            self._scored.measurement(
                size, self.config(combination), f"{combination.test_id}-{size}", combinations
            )
            for combination in combinations
        )

    def fingerprint(self, case: Case) -> Fingerprint:
        """Return the fingerprint that the case's manifest would have.

        Raises:
            AutoquantError: model, captions or preset cannot be loaded.
        """
        config, data = self.config(case.combination), self.data(case.size)
        chosen = self._engines.choose(config, case.size)
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
        if self._least_bits is None:
            cases = (case.combination for case in self._assignment.selected)
            selected = {combination.test_id: combination for combination in cases}
            try:
                bits = [self.config(each).effective_bits for each in selected.values()]
            except AutoquantError:  # of another case, which fails by itself
                return
            self._least_bits = min(bits, default=0.0)
        refuse_small_budget(self._settings.effective_bits, self._least_bits)

    def _measurement(self, case: Case, config: EffectiveConfig) -> Measurement:
        batch = (
            other.combination
            for other in self._assignment.batch_of(case)
            if not self._is_kept(other)
        )
        return self._scored.measurement(case.size, config, case.test_id, batch)

    def _expert_tokens(self, size: str, measurement: Measurement) -> ExpertCounts:
        """Return the tokens that each expert saw, counted once per size if the engine did not."""
        if measurement.expert_tokens is not None:
            return measurement.expert_tokens
        if size not in self._counted:
            self._counted[size] = count_expert_tokens(self.model, self.data(size).batches)
        return self._counted[size]

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
        return (*self._scored.key(case.size, self.config(case.combination)), case.method)

    def _score_check(
        self, case: Case, config: EffectiveConfig, measurement: Measurement
    ) -> ScoreCheck | str | None:
        """Return the check of a case's scores, or why there is none; None by ``kl_div``."""
        if case.method == "kl_div":
            return None
        reason = not_checked(
            self._settings.check_scores, self.source, case.size, measurement.engine
        )
        if reason is not None:
            return reason
        data, together = self.data(case.size), self._scored.swept(case.size)
        with self._clock.phase("score checks"):
            return self._checks.check(config, measurement, data, together)

    def _whole_model(
        self, case: Case, config: EffectiveConfig, measurement: Measurement
    ) -> WholeModelKL | str:
        """Return the divergence with every group quantized, or why there is none."""
        wanted = self._settings.whole_model_kl is not False
        reason = not_measured(wanted, measurement.engine)
        if reason is not None:
            return reason
        data, together = self.data(case.size), self._scored.swept(case.size)
        with self._clock.phase("whole-model KL"):
            return self._whole_models.measure(config, measurement, data, case.method, together)

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
            cost=self._settings.cost,
            seed=self._settings.seed,
        )
