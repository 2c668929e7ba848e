"""The measuring side of a worker: one model, one prober, every case measured at most once."""

from __future__ import annotations

import getpass
import platform
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import torch

from pytest_autoquant.calibration.captions import CalibrationData, calibration_data, load_captions
from pytest_autoquant.errors import AutoquantError, MeasurementError, NotReplayableError
from pytest_autoquant.formats.effective_config import EffectiveConfig
from pytest_autoquant.grid.case import Case, Combination
from pytest_autoquant.manifests.fingerprint import HARNESS_VERSION, Fingerprint, fingerprint
from pytest_autoquant.manifests.sensitivity_manifest import (
    EnvironmentRecord,
    Manifest,
    MemoryRecord,
    RunConfig,
)
from pytest_autoquant.modelopt_support.cuda_extensions import ANNOUNCEMENT
from pytest_autoquant.modelopt_support.cuda_extensions import build as build_extensions
from pytest_autoquant.modelopt_support.probe import Prober, misfits, quiet
from pytest_autoquant.modelopt_support.status import Support
from pytest_autoquant.models.loading import LoadedModel, load_model, resolve_device, resolve_dtype
from pytest_autoquant.models.registry import ModelSource
from pytest_autoquant.options.settings import Settings
from pytest_autoquant.scoring.build_manifest import Findings, Layer, build_manifest
from pytest_autoquant.scoring.engine import Engine, Failure, Measurement
from pytest_autoquant.scoring.progress import Progress
from pytest_autoquant.scoring.replay.engine import ReplayEngine
from pytest_autoquant.scoring.stock import StockEngine

Warn = Callable[[str], None]


class MeasurementRunner:
    """Loads lazily and keeps: the model, the captions of each size, the measurements."""

    def __init__(
        self,
        settings: Settings,
        source: ModelSource,
        progress: Progress,
        warn: Warn,
        *,
        workers: int = 1,
    ) -> None:
        """Build nothing yet; ``workers`` is how many processes measure on this host."""
        _share_cores(workers)
        self._settings = settings
        self.source = source
        self._progress = progress
        self._warn = warn
        self._model_error: AutoquantError | None = None
        self._unreplayable: dict[str, str] = {}
        self._configs: dict[str, EffectiveConfig] = {}
        self._data: dict[str, CalibrationData] = {}
        self._outcomes: dict[tuple[str, str], Measurement | Failure] = {}

    @cached_property
    def device(self) -> torch.device:
        """The device cases run on."""
        return resolve_device(self._settings.device)

    @cached_property
    def prober(self) -> Prober:
        """Answers what can run on the device."""
        with quiet():
            import modelopt.torch.quantization  # noqa: F401 - warns once about torch.jit
        if self.device.type == "cuda":
            self._progress(ANNOUNCEMENT, 0, 1)
            build_extensions()
        return Prober(self.device, resolve_dtype(self._settings.dtype, self.device))

    @cached_property
    def model(self) -> LoadedModel:
        """The model, loaded on first use; a failure is remembered rather than tried per case."""
        if self._model_error is not None:
            raise self._model_error
        self._progress(f"load {self.source.name}", 0, 1)
        try:
            with quiet():
                return load_model(
                    self.source,
                    device=self.device,
                    dtype=resolve_dtype(self._settings.dtype, self.device),
                    random_seed=self._settings.random_seed,
                    trust_remote_code=self._settings.trust_remote_code,
                )
        except AutoquantError as error:
            self._model_error = error
            raise

    @cached_property
    def stock(self) -> StockEngine:
        """The reference engine."""
        return StockEngine(
            self.model, method=self._settings.method, save_state=self._settings.save_state
        )

    @cached_property
    def replay(self) -> ReplayEngine:
        """The engine that sweeps a whole grid."""
        return ReplayEngine(
            self.model,
            tape_device=self._settings.tape_device,
            tape_folder=self._settings.tape_dir,
        )

    def engine(self, config: EffectiveConfig, size: str) -> tuple[Engine, str]:
        """Return the engine that scores a config on a size, and why that one.

        Raises:
            MeasurementError: ``--aq-engine replay`` for what only stock AutoQuant can do.
        """
        if self._settings.engine == "modelopt":
            return self.stock, "asked for with --aq-engine"
        refusal = self._replay_refusal(config, size)
        if refusal is None:
            return self.replay, "scores every config of a size in one sweep"
        if self._settings.engine == "replay":
            raise MeasurementError(f"--aq-engine replay cannot score this case: {refusal}")
        return self.stock, f"the replay engine cannot score this case: {refusal}"

    def _replay_refusal(self, config: EffectiveConfig, size: str) -> str | None:
        if self._settings.method != "gradient":
            return f"method {self._settings.method} needs the whole model"
        if self._settings.save_state:
            return "--aq-save-state asks for ModelOpt's own search state"
        return self._unreplayable.get(size) or self.replay.refuses(config)

    def config(self, combination: Combination) -> EffectiveConfig:
        """Return the effective config of a pair under an overlay."""
        if combination.id not in self._configs:
            resolved = self.prober.resolve(combination.pair, combination.granularity)
            self._configs[combination.id] = resolved
        return self._configs[combination.id]

    def support(self, combination: Combination) -> Support:
        """Return whether a pair under an overlay can run here, and if not why."""
        return self.prober.support(self.config(combination))

    def data(self, size: str) -> CalibrationData:
        """Return the batches of a size; says so when there are fewer captions than it needs."""
        if size not in self._data:
            captions = load_captions(self._settings.captions, size)
            data = calibration_data(
                captions,
                self.model.tokenize(captions.lines),
                batch_size=self._settings.batch_size,
                score_size=self._settings.score_size,
            )
            for note in data_notes(data):
                self._warn(note)
            self._data[size] = data
        return self._data[size]

    def fingerprint(self, case: Case) -> Fingerprint:
        """Return the fingerprint that the case's manifest would have.

        Raises:
            AutoquantError: model, captions or preset cannot be loaded.
        """
        config, data = self.config(case.combination), self.data(case.size)
        engine, _ = self.engine(config, case.size)
        return fingerprint(
            case=case,
            config=config,
            captions=data,
            model=self.model.record,
            environment=self.environment,
            run=self._run_config(config, engine.name, data),
        )

    def measure(
        self, case: Case, alias_of: str | None, peers: Iterable[Case]
    ) -> tuple[Manifest, bytes | None]:
        """Measure a case, or take its scores from what has been measured.

        Args:
            alias_of: the case whose effective config is the same, None if there is none.
            peers: cases of the same size; an engine that sweeps scores them together with this
                one. Looked at only when something has to be scored.

        Returns the manifest and, when asked for, ModelOpt's search state.
        """
        started = time.perf_counter()
        config, data = self.config(case.combination), self.data(case.size)
        layers = self._layers(config)
        if (case.size, config.digest) not in self._outcomes:
            self._score(case.size, config, (peer.combination for peer in peers))
        measurement = self._outcome(case.size, config, case.id)
        findings = Findings(
            case=case,
            config=config,
            measurement=measurement,
            data=data,
            layers=layers,
            alias_of=alias_of,
            notes=(*data_notes(data), *layer_notes(layers), *measurement.notes),
            model=self.model.record,
            environment=self.environment,
            memory=memory(measurement.peak_cuda_bytes),
            run_config=self._run_config(config, measurement.engine, data),
        )
        manifest = build_manifest(findings)
        if alias_of is None:
            total = time.perf_counter() - started
            manifest = replace(manifest, timing={**manifest.timing, "total": total})
        return manifest, measurement.state

    def scores(self, size: str, combinations: Sequence[Combination]) -> tuple[Measurement, ...]:
        """Return what each combination measures on a size; what is missing is scored together.

        Raises:
            MeasurementError: one of them cannot be measured.
        """
        found = []
        for combination in combinations:
            config = self.config(combination)
            if (size, config.digest) not in self._outcomes:
                self._score(size, config, combinations)
            found.append(self._outcome(size, config, f"{combination.id}-{size}"))
        return tuple(found)

    def _score(self, size: str, config: EffectiveConfig, peers: Iterable[Combination]) -> None:
        engine, _ = self.engine(config, size)
        data = self.data(size)
        configs = {config.digest: config}
        if engine.sweeps:
            for peer in peers:
                other = self.config(peer)
                if self._joins(other, engine):
                    configs.setdefault(other.digest, other)
        try:
            outcomes = engine.score(list(configs.values()), data, self._progress)
        except NotReplayableError as error:
            if self._settings.engine == "replay":
                raise
            self._unreplayable[size] = str(error)
            self._score(size, config, ())  # stock AutoQuant takes one case at a time
            return
        for digest, outcome in outcomes.items():
            self._outcomes[size, digest] = outcome

    def _joins(self, config: EffectiveConfig, engine: Engine) -> bool:
        return self.prober.support(config).is_supported and engine.refuses(config) is None

    def _outcome(self, size: str, config: EffectiveConfig, what: str) -> Measurement:
        outcome = self._outcomes[size, config.digest]
        if isinstance(outcome, Measurement):
            return outcome
        raise MeasurementError(f"{what} could not be measured: {outcome.reason}", outcome.trace)

    def _layers(self, config: EffectiveConfig) -> dict[str, Layer]:
        return {
            linear.name: Layer(
                module_type=linear.module_type,
                out_features=linear.out_features,
                in_features=linear.in_features,
                padded_to=next(
                    filter(None, (misfits(config, w) for w in linear.input_widths)), None
                ),
            )
            for linear in self.model.linears
        }

    @cached_property
    def environment(self) -> EnvironmentRecord:
        """Versions and device of this process."""
        import modelopt
        import transformers

        record_host = self._settings.record_host
        is_cuda = self.device.type == "cuda"
        return EnvironmentRecord(
            harness=HARNESS_VERSION,
            python=platform.python_version(),
            torch=torch.__version__,
            transformers=transformers.__version__,
            modelopt=modelopt.__version__,
            cuda=torch.version.cuda,
            device=self.device.type,
            device_name=torch.cuda.get_device_name(self.device) if is_cuda else "CPU",
            platform=f"{platform.system()} {platform.machine()}",
            host=socket.gethostname() if record_host else None,
            user=getpass.getuser() if record_host else None,
        )

    def _run_config(self, config: EffectiveConfig, engine: str, data: CalibrationData) -> RunConfig:
        _, reason = self.engine(config, data.captions.size)
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


def data_notes(data: CalibrationData) -> tuple[str, ...]:
    """Say when a measurement used fewer captions than its size asks for."""
    notes = [data.shortfall] if data.shortfall else []
    if data.dropped:
        notes.append(
            f"{data.captions.name}: left out {len(data.dropped)} with fewer than two tokens, such "
            f"as {data.dropped[0]!r}"
        )
    return tuple(notes)


def layer_notes(layers: Mapping[str, Layer]) -> tuple[str, ...]:
    """Say which linears' input widths the block size does not divide, one line per width."""
    padded: dict[tuple[int, int], list[str]] = {}
    for name, layer in layers.items():
        if layer.padded_to is not None:
            padded.setdefault((layer.in_features, layer.padded_to), []).append(name)
    return tuple(
        f"block size does not divide the input width {width} of {names[0]}"
        + (f" and {len(names) - 1} more linears" if len(names) > 1 else "")
        + f": padded to {to}"
        for (width, to), names in padded.items()
    )


def _share_cores(workers: int) -> None:
    """Give each worker its part of the cores: threads that compete for one spin."""
    if workers > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))


def memory(peak_cuda_bytes: int | None) -> MemoryRecord:
    """Return the process's peak memory so far beside what a GPU took."""
    return MemoryRecord(peak_rss_bytes=_peak_rss_bytes(), peak_cuda_bytes=peak_cuda_bytes)


def _peak_rss_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
