"""One pytest session: the settings, the grid, the bench behind it, and what arrived."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_autoquant.calibration.captions import load_captions, load_held_out
from pytest_autoquant.errors import AutoquantError, RecordError, UsageError, WriteError
from pytest_autoquant.files import check_writable, write_atomic
from pytest_autoquant.grid.case import (
    Case,
    Combination,
    SchemeCase,
    cases,
    combinations,
    scheme_cases,
    select_sizes,
    select_vocabulary,
)
from pytest_autoquant.grid.sharding import partition
from pytest_autoquant.grid.vocabulary import Vocabulary, load_vocabulary
from pytest_autoquant.manifests.case_result import case_result_of
from pytest_autoquant.manifests.fingerprint import Difference, differences
from pytest_autoquant.manifests.outcomes import FailedCase, SkippedCase, StructureCheck
from pytest_autoquant.manifests.scheme_manifest import (
    SchemeManifest,
    dump_scheme,
    load_scheme,
    read_scheme_manifest,
)
from pytest_autoquant.manifests.sensitivity_manifest import load_manifest
from pytest_autoquant.models.registry import ModelSource, find_model
from pytest_autoquant.options.settings import Settings
from pytest_autoquant.plugin.outcome import Message, load_message
from pytest_autoquant.redact import command_line
from pytest_autoquant.regression.baselines import PASSED, Baselines, Outcome, Verdict
from pytest_autoquant.regression.resume import Earlier, earlier_manifest, read_earlier
from pytest_autoquant.regression.tolerances import Tolerances
from pytest_autoquant.reports.session_results import SessionResults
from pytest_autoquant.reports.write import write_case, write_expected, write_summary

if TYPE_CHECKING:
    from pytest_autoquant.export.pipeline import SchemeRunner
    from pytest_autoquant.manifests.sensitivity_manifest import Manifest
    from pytest_autoquant.scoring.progress import Progress
    from pytest_autoquant.scoring.runner import MeasurementRunner, Warn


class AutoquantSession:
    """What the plugin's hooks hand over to.

    A worker uses ``support`` and ``measure``; the controller uses ``receive`` and ``finish``.
    Without xdist one process is both.
    """

    def __init__(self, settings: Settings, rootdir: Path) -> None:
        self.settings = settings
        self.root = settings.report_root(rootdir)
        self.results = SessionResults()
        known = load_vocabulary(settings.conf)
        self.vocabulary: Vocabulary = select_vocabulary(
            known, settings.pairs, settings.granularities
        )
        self.sizes = select_sizes(settings.sizes)
        self.source: ModelSource = find_model(
            settings.model, random_weights=settings.random_seed is not None
        )
        if settings.captions is not None:
            load_captions(settings.captions, self.sizes[0])
        self.schemes: tuple[SchemeCase, ...] = scheme_cases(
            known,
            settings.schemes,
            model=self.source.name,
            size=self.sizes[-1],
        )
        self._held_out = load_held_out(settings.held_out) if settings.schemes else None
        self._deriver: SchemeRunner | None = None
        self._tolerances = Tolerances(
            spearman=settings.tol_spearman,
            top_ten=settings.tol_top_ten,
            total=settings.tol_total,
            group=settings.tol_group,
            selected=settings.tol_selected,
        )
        self._selected: tuple[Case, ...] = ()
        self._parts: dict[str, int] = {}
        self._earlier: Earlier | None = None
        self._expected: set[str] = set()
        self._bench: MeasurementRunner | None = None
        self.workers_here = 1

    @cached_property
    def baselines(self) -> Baselines | None:
        """What finished cases are compared with; the controller's alone, workers need not see it.

        Raises:
            RecordError: the folder holds nothing to compare with, or what cannot be read.
        """
        baseline = self.settings.baseline
        if baseline is None:
            return None
        if baseline.resolve() == self.root.resolve() and not self.settings.update_baseline:
            raise RecordError(
                f"--aq-baseline {baseline}: is where this run writes its reports, so every case "
                "would be compared with itself; give another folder with --aq-report-dir"
            )
        return Baselines(
            baseline,
            missing=self.settings.baseline_missing,  # type: ignore[arg-type]
            update=self.settings.update_baseline,
            allowed=self.settings.baseline_allow,
        )

    @cached_property
    def combinations(self) -> tuple[Combination, ...]:
        """Every selected pair under every selected overlay."""
        return tuple(combinations(self.vocabulary))

    @cached_property
    def cases(self) -> tuple[Case, ...]:
        """Every sensitivity case of the selected grid."""
        return tuple(
            cases(
                self.vocabulary,
                self.sizes,
                model=self.source.name,
                method=self.settings.method,
            )
        )

    @cached_property
    def cases_by_id(self) -> Mapping[str, Case]:
        """The grid by test id."""
        return {case.id: case for case in self.cases}

    def select(self, selected: Sequence[Case], *, workers: int) -> tuple[Case, ...]:
        """Say which cases are asked for, in order, and return those of this session's shard.

        Aliases point at the first of equal ones, in whichever shard it is. Among ``workers``, each
        takes the cases of one part.
        """
        self._selected = tuple(selected)
        shard, own = self.settings.shard, self._selected
        if shard is not None:
            parts = self.parts(own, shard.count)
            own = tuple(case for case in own if parts[case.case_id] == shard.index - 1)
        self._parts = self.parts(own, workers)
        return own

    def parts(self, selected: Sequence[Case], count: int) -> dict[str, int]:
        """Deal cases into equal parts, by ``case_id``."""
        return partition(selected, count, self.settings.score_size) if selected else {}

    def takes(self, combination: Combination) -> bool:
        """Whether a structure case belongs to this session's shard."""
        shard = self.settings.shard
        if shard is None:
            return True
        return self.combinations.index(combination) % shard.count == shard.index - 1

    def settle(self, case: Case | SchemeCase, *, is_skipped: bool) -> Verdict:
        """Say that a case ended without an outcome to take in; return what the gate says of it."""
        self._expected.discard(case.case_id)
        return self._gate_skip(case.case_id, "by a marker") if is_skipped else PASSED

    def takes_scheme(self, case: SchemeCase) -> bool:
        """Whether a scheme was asked for and belongs to this session's shard."""
        shard = self.settings.shard
        if not self.settings.schemes:
            return False
        return shard is None or self.schemes.index(case) % shard.count == shard.index - 1

    @cached_property
    def schemes_by_id(self) -> Mapping[str, SchemeCase]:
        """The schemes by test id."""
        return {case.id: case for case in self.schemes}

    def deriver(self, bench: MeasurementRunner) -> SchemeRunner:
        """Return what turns scores into checkpoints, built on first use.

        Raises:
            UsageError: no scheme was asked for.
        """
        if self._held_out is None:
            raise UsageError("no scheme was asked for; give --aq-schemes")
        if self._deriver is None:
            from pytest_autoquant.export.pipeline import SchemeRunner

            settings = self.settings
            self._deriver = SchemeRunner(
                bench,
                held_out=self._held_out,
                target=None if settings.target == "none" else settings.target,
                root=self.root if settings.export else None,
                may_replace=settings.replace_export,
            )
        return self._deriver

    def expect(self, cases: Iterable[Case | SchemeCase]) -> None:
        """Say which cases must send an outcome; the others are lost when the session ends.

        Until then the summary on disk names them all: the session may be killed before it ends.
        """
        new = {case.case_id for case in cases} - self._expected
        if new:
            self._expected |= new
            write_expected(self.root, self._unfinished())

    def _unfinished(self) -> SessionResults:
        lost = tuple(sorted(self._expected - self.results.case_ids))
        shard = self.settings.shard
        return SessionResults(lost=lost, shard=None if shard is None else str(shard))

    def bench(self, progress: Progress, warn: Warn) -> MeasurementRunner:
        """Return the measuring side, built on first use: this is where torch is imported."""
        if self._bench is None:
            from pytest_autoquant.scoring.runner import MeasurementRunner

            self._bench = MeasurementRunner(
                self.settings, self.source, progress, warn, workers=self.workers_here
            )
        return self._bench

    @property
    def has_bench(self) -> bool:
        """Whether the measuring side exists in this process."""
        return self._bench is not None

    def canonical(self, case: Case, bench: MeasurementRunner) -> Case:
        """Return the first selected case with the same effective config, which measures for all."""
        wanted = bench.config(case.combination).digest
        for other in self._selected:
            if (other.size, other.method) != (case.size, case.method):
                continue
            config = bench.config(other.combination)
            if config.digest == wanted and config.no_effect is None:
                return other
        return case

    def measure(self, case: Case, bench: MeasurementRunner) -> tuple[Manifest, bytes | None]:
        """Measure one case."""
        first = self.canonical(case, bench)
        peers = (other for other in self._peers(case) if not self.is_kept(other, bench))
        return bench.measure(case, None if first == case else first.case_id, peers)

    def _peers(self, case: Case) -> Iterable[Case]:
        """Yield the cases that this process measures as well: of the same part and size."""
        part = self._parts.get(case.case_id)
        for other in self._selected:
            if other.size == case.size and self._parts.get(other.case_id, -1) == part:
                yield other

    @property
    def earlier(self) -> Earlier:
        """Fingerprints of what was measured before, on ``--aq-resume``; from the report folder."""
        if self._earlier is None:
            is_resumed = self.settings.resume
            self._earlier = read_earlier(self.root, self.cases) if is_resumed else {}
        return self._earlier

    @earlier.setter
    def earlier(self, found: Earlier) -> None:
        self._earlier = found

    def changes(self, case: Case, bench: MeasurementRunner) -> tuple[Difference, ...] | None:
        """Return what changed since a case was measured before, None if it never was.

        Raises:
            AutoquantError: model or captions cannot be loaded.
        """
        before = self.earlier.get(case.case_id)
        return None if before is None else differences(before, bench.fingerprint(case))

    def is_kept(self, case: Case, bench: MeasurementRunner) -> bool:
        """Whether a resumed run leaves a case as it was measured before."""
        return self.changes(case, bench) == ()

    def structure(self, combination: Combination, bench: MeasurementRunner) -> StructureCheck:
        """Resolve a combination, have ModelOpt validate it, and find its status."""
        config = bench.config(combination)
        bench.prober.accepts(config)
        support = bench.support(combination)
        return StructureCheck(
            pair=combination.pair.name,
            granularity=combination.granularity.name,
            status=support.status.value,
            reason=support.reason,
            format_name=combination.pair.format_name,
            effective_bits=config.effective_bits,
            digest=config.digest,
        )

    def check_folders(self) -> None:
        """Raise RecordError or WriteError if reports or baselines cannot be read or written."""
        if self.baselines is not None:
            self.baselines.check()
        check_writable(self.root)

    def receive(self, text: str, state: bytes | None, *, failed: bool = False) -> Verdict:
        """Take in what a worker attached to a report; a manifest is on disk when this returns.

        Returns what the regression gate says of the case; a case that cannot be taken in fails.

        Args:
            failed: the case's own test failed: it is then neither compared nor blessed.
        """
        try:
            verdict = self._receive(load_message(text), state, is_gated=not failed)
            return PASSED if failed else verdict
        except AutoquantError as error:
            self.results.write_errors.append(str(error))
            return Verdict(outcome=Outcome.FAILED, text=str(error))

    def _receive(self, message: Message, state: bytes | None, *, is_gated: bool) -> Verdict:
        if message.kind == "manifest":
            manifest = self._receive_manifest(message, state)
            if manifest.case.case_id not in self.results.written:
                return Verdict(outcome=Outcome.FAILED, text=self.results.write_errors[-1])
            return self._gate(manifest, message) if is_gated else PASSED
        if message.kind == "scheme":
            self._receive_scheme(load_scheme(str(message.body), source="a worker's report"))
            return PASSED
        body: dict[str, Any] = message.body  # type: ignore[assignment]
        if message.kind == "kept":
            return self._receive_kept(body["case_id"], message)
        if message.kind == "skip":
            skip = SkippedCase(**body)
            self.results.add(skip)
            return self._gate_skip(skip.case_id, f"{skip.status}: {skip.reason}")
        if message.kind == "error":
            self.results.add(FailedCase(**body))
        else:
            line = StructureCheck(**body)
            self.results.structures[line.pair, line.granularity] = line
        return PASSED

    def finish(self, arguments: Sequence[str] = ()) -> tuple[Path, ...]:
        """Write the summary; return the files, none when nothing of ours ran.

        Args:
            arguments: pytest's, for the report to say what was run.
        """
        self.results.command = command_line(arguments, with_paths=self.settings.record_host)
        unfinished = self._unfinished()
        self.results.lost, self.results.shard = unfinished.lost, unfinished.shard
        if self.results.is_empty and self.settings.shard is None:
            return ()
        try:
            self.results.sort()
            shown = self.results if self.settings.record_host else self.results.public(self.root)
            return write_summary(self.root, shown)
        except WriteError as error:
            self.results.write_errors.append(str(error))
            return ()

    def _receive_manifest(self, message: Message, state: bytes | None) -> Manifest:
        """Write a case; whatever stops that before it is done leaves the case unfinished."""
        manifest = load_manifest(str(message.body), source="a worker's report")
        try:
            write_case(self.root, manifest, state)
            self.results.written.add(manifest.case.case_id)
        except AutoquantError as error:
            self.results.write_errors.append(str(error))
        self.results.add(case_result_of(manifest))
        if message.rerun is not None:
            self.results.reruns[manifest.case.case_id] = message.rerun
        return manifest

    def _receive_scheme(self, manifest: SchemeManifest) -> None:
        """Write a scheme's manifest where its worker could not: on another host, or unexported."""
        path = self.root / manifest.path
        self.results.schemes[manifest.case_id] = manifest
        text = dump_scheme(manifest)
        if manifest.export is None and self._is_exported(path):
            return  # the record of a checkpoint stays with it
        if not path.is_file() or path.read_bytes() != text.encode():
            write_atomic(path, text)

    def _is_exported(self, path: Path) -> bool:
        try:
            return read_scheme_manifest(path, self.root).export is not None
        except RecordError:
            return False

    def _receive_kept(self, case_id: str, message: Message) -> Verdict:
        (case,) = (case for case in self.cases if case.case_id == case_id)
        manifest = earlier_manifest(self.root, case)
        if manifest is None:
            text = f"{case_id}: its manifest vanished while the run was resumed; run it again"
            self.results.add(FailedCase(case_id=case_id, problem=text))
            return Verdict(outcome=Outcome.FAILED, text=text)
        self.results.add(case_result_of(manifest))
        self.results.kept.add(case_id)
        return self._gate(manifest, message)

    def _gate(self, manifest: Manifest, message: Message) -> Verdict:
        if self.baselines is None:
            return PASSED
        try:
            tolerances = self._tolerances.with_marker(message.tolerances or {})
        except AutoquantError as error:
            return self._note(
                manifest.case.case_id, Verdict(outcome=Outcome.FAILED, text=str(error))
            )
        verdict = self.baselines.judge(manifest, self.root / manifest.path, tolerances)
        return self._note(manifest.case.case_id, verdict)

    def _gate_skip(self, case_id: str, reason: str) -> Verdict:
        if self.baselines is None:
            return PASSED
        return self._note(case_id, self.baselines.judge_skip(case_id, reason))

    def _note(self, case_id: str, verdict: Verdict) -> Verdict:
        self.results.gated.pop(case_id, None)
        if verdict.outcome is Outcome.FAILED:
            self.results.gated[case_id] = verdict.text
        return verdict
