"""Takes in what tests report, writes every file as it arrives, judges, and sums the run up."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pytest_autoquant.errors import AnotherModelError, AutoquantError, RecordError
from pytest_autoquant.files import check_writable, write_atomic
from pytest_autoquant.manifests.case_result import case_result_of
from pytest_autoquant.manifests.records.outcome_log import append
from pytest_autoquant.manifests.records.outcomes import FailedCase, SkippedCase, StructureCheck
from pytest_autoquant.manifests.records.scheme_manifest import (
    SchemeManifest,
    dump_scheme,
    load_scheme,
    read_scheme_manifest,
)
from pytest_autoquant.manifests.records.sensitivity_manifest import (
    Manifest,
    ModelRecord,
    RunConfig,
    load_manifest,
)
from pytest_autoquant.manifests.selection import with_budget
from pytest_autoquant.options.run_plan import RunPlan
from pytest_autoquant.phases import PhaseClock
from pytest_autoquant.plugin.controller.gate import Gate
from pytest_autoquant.plugin.messages.collected import CollectedCases
from pytest_autoquant.plugin.messages.outcome import (
    Checked,
    DerivedScheme,
    Failed,
    Kept,
    MeasuredCase,
    Refused,
    Skipped,
    WorkerReport,
    load_report,
)
from pytest_autoquant.redact import command_line, without_paths
from pytest_autoquant.regression.baselines import PASSED, Outcome, Verdict
from pytest_autoquant.regression.recorded_model import (
    RecordedModel,
    recorded_model,
    refuse_replacing,
)
from pytest_autoquant.regression.resume import earlier_manifest
from pytest_autoquant.reports.ownership import refuse_foreign_files
from pytest_autoquant.reports.session_results import SessionResults
from pytest_autoquant.reports.write import (
    complete_case,
    draw_layer_maps,
    write_case,
    write_expected,
    write_summary,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TestEnd:
    """How the final attempt of one test ended.

    Attributes:
        failure: first line of what the test failed with, None unless it failed.
        skip_reason: why it was skipped, None unless it was.
        is_expected_failure: the test failed as its ``xfail`` marker expects.
        outcomes: JSON of what the worker reported, None if it reported nothing.
        state: ModelOpt's search state of the measured case.
    """

    __test__ = False

    nodeid: str
    failure: str | None = None
    skip_reason: str | None = None
    is_expected_failure: bool = False
    outcomes: str | None = None
    state: bytes | None = None


#: The gate's outcomes, the worst last: it counts where one test measures several cases.
_SEVERITY = (Outcome.PASSED, Outcome.SKIPPED, Outcome.FAILED)

#: Outcomes that leave no manifest.
LoggedOutcome = SkippedCase | FailedCase | StructureCheck


class Collector:
    """The controller's record of one run.

    Args:
        clock: of this process; by default one of its own.
    """

    def __init__(self, plan: RunPlan, clock: PhaseClock | None = None) -> None:
        self._plan = plan
        self._clock = clock or PhaseClock()
        self._root = plan.root
        self.results = SessionResults(started=datetime.now(UTC))
        baseline = plan.settings.baseline
        self.gate = None if baseline is None else Gate(plan.settings, baseline, plan.root)
        self._collected = CollectedCases()
        self._open: set[str] = set()
        self._failed: set[str] = set()
        self._models: dict[str, RecordedModel] = {}
        self._workers: dict[str, Mapping[str, float]] = {}
        self._unblessed: dict[str, tuple[Manifest, Mapping[str, float] | None]] = {}

    def check_folders(self) -> None:
        """Raise WriteError now if reports, baselines, tapes or weights could not be written later.

        A report must not replace a file of somebody else either.
        """
        if self.gate is not None:
            self.gate.check_folder()
        check_writable(self._root)
        refuse_foreign_files(self._root)
        tapes = self._plan.settings.tape_dir
        if tapes is not None:
            check_writable(tapes, name="tape folder", option="--aq-tape-dir")
        offloaded = self._plan.settings.offload_dir
        if offloaded is not None and self._plan.settings.device_map == "auto":
            check_writable(offloaded, name="offload folder", option="--aq-offload-dir")

    def expect(self, collected: CollectedCases) -> None:
        """Take in which tests must report; those that do not are lost when the run ends.

        Until then the summary on disk names them all: the run may be killed before it ends.
        """
        new = set(collected.case_ids) - set(self._collected.case_ids)
        self._collected = collected
        self._open |= new
        if new:
            write_expected(self._root, self._unfinished())

    @property
    def has_cases(self) -> bool:
        """Whether a test of the run belongs to this plugin."""
        return self._collected.num_selected > 0

    @property
    def compared_nothing(self) -> bool:
        """Whether a gate was asked for and no case came to be compared or blessed."""
        has_cases = bool(self._collected.cases or self.results.cases)
        return self.gate is not None and has_cases and not self.gate.num_judged

    @property
    def lost(self) -> tuple[str, ...]:
        """The cases of which a test sent no outcome."""
        case_ids = self._collected.case_ids
        return tuple(sorted({case_ids[nodeid] for nodeid in self._open}))

    def take(self, end: TestEnd) -> Verdict:
        """Take in how a test ended; its manifest is on disk when this returns.

        Returns what the regression gate says of the case. An outcome that cannot be read or written
        is a failure.
        """
        with self._clock.phase("writing"):
            return self._take(end)

    def _take(self, end: TestEnd) -> Verdict:
        case_id = self._collected.case_ids.get(end.nodeid)
        if case_id is not None and (end.failure is not None or end.is_expected_failure):
            self._failed.add(case_id)
        try:
            verdict = self._take_outcomes(end)
            if end.outcomes is None and case_id is not None:
                verdict = self._take_silent(case_id, end)
        except AutoquantError as error:
            self._open.discard(end.nodeid)
            if str(error) not in self.results.write_errors:
                self.results.write_errors.append(str(error))
            return Verdict(outcome=Outcome.FAILED, text=str(error))
        self._open.discard(end.nodeid)  # not earlier: a case that is interrupted here is lost
        if case_id is not None and end.failure is not None and not self._has_failed(case_id):
            self._log(FailedCase(case_id=case_id, problem=end.failure))
        if end.failure is not None:
            return PASSED  # the test fails anyway, with a message of its own
        return self._bless(case_id) or verdict

    def finish(self, arguments: Sequence[str] = ()) -> tuple[Path, ...]:
        """Write the summary of the report folder; return the files, none if nothing of ours ran.

        Args:
            arguments: pytest's command line, for the report.
        """
        with self._clock.phase("writing"):
            files = self._finish(arguments)
        self.results.timing = self.timing
        return files

    @property
    def timing(self) -> dict[str, Mapping[str, float]]:
        """Seconds by phase so far, of this process and of each xdist worker."""
        here = "controller" if self._workers else "main"
        return {here: self._clock.seconds(), **dict(sorted(self._workers.items()))}

    def _finish(self, arguments: Sequence[str]) -> tuple[Path, ...]:
        results = self.results
        results.command = command_line(arguments, with_paths=self._plan.settings.record_host)
        unfinished = self._unfinished()
        results.lost, results.shard = unfinished.lost, unfinished.shard
        results.gated = dict(self.gate.failures) if self.gate is not None else {}
        is_empty_shard = self._plan.settings.shard is not None and self.has_cases
        if results.is_empty and not is_empty_shard:
            return ()
        self._draw()
        results.timing = self.timing
        try:
            is_public = not self._plan.settings.record_host
            return write_summary(self._root, results.public(self._root) if is_public else results)
        except AutoquantError as error:
            results.write_errors.append(str(error))
            return ()

    def _draw(self) -> None:
        """Draw the pictures of the cases now that all manifests are on disk."""
        there = self.results.written | self.results.kept
        cases = [case for case_id, case in self.results.cases.items() if case_id in there]
        try:
            draw_layer_maps(self._root, cases)
        except AutoquantError as error:
            self.results.write_errors.append(str(error))

    def _has_failed(self, case_id: str) -> bool:
        """Whether an outcome of the case says already why it failed."""
        case = self.results.cases.get(case_id)
        return case_id in self.results.errors or (case is not None and case.status == "failed")

    def _take_outcomes(self, end: TestEnd) -> Verdict:
        if end.outcomes is None:
            return PASSED
        report = load_report(end.outcomes)
        if report.process is not None:
            self._workers[report.process] = report.timing
        verdicts = [self._take_one(outcome, report, end) for outcome in report.outcomes]
        return max(verdicts, key=lambda verdict: _SEVERITY.index(verdict.outcome))

    def _take_one(self, outcome: object, report: WorkerReport, end: TestEnd) -> Verdict:
        match outcome:
            case MeasuredCase():
                return self._take_measured(outcome, report, end)
            case DerivedScheme():
                self._take_scheme(load_scheme(outcome.manifest, source="a worker's report"))
            case Kept():
                return self._take_kept(outcome.case.case_id, report, end)
            case Skipped():
                return self._take_skip(outcome.case)
            case Failed():
                self._log(outcome.case)
            case Refused():
                raise AnotherModelError(outcome.problem)
            case Checked():
                self._log(outcome.check)
        return PASSED

    def _take_silent(self, case_id: str, end: TestEnd) -> Verdict:
        """Take in a case whose test ended without an outcome: skipped by a marker, or failed."""
        if end.skip_reason is None:
            return PASSED
        return self._take_skip(
            SkippedCase(case_id=case_id, status="skipped", reason=end.skip_reason)
        )

    def _take_skip(self, case: SkippedCase) -> Verdict:
        self._log(case)
        if self.gate is None:
            return PASSED
        return self.gate.judge_skip(case.case_id, f"{case.status}: {case.reason}")

    def _take_measured(self, outcome: MeasuredCase, report: WorkerReport, end: TestEnd) -> Verdict:
        """Write a measured case; of two tests of one case, the first result stays."""
        manifest = load_manifest(outcome.manifest, source="a worker's report")
        case_id = manifest.case.case_id
        if case_id not in self.results.written:
            failed = self.results.errors.get(case_id)
            self._write(manifest, outcome.manifest, end.state)
            if failed is not None:
                self.results.add(failed)  # another test of the case failed
        if outcome.rerun is not None:
            self.results.reruns[case_id] = outcome.rerun
        return self._judge(manifest, report, end)

    def _refuse_another(self, model: ModelRecord, manifest: Path) -> None:
        """Refuse results of another model under a name that the report folder knows."""
        known = self._models.get(model.name) or recorded_model(self._root, model.name)
        if known is not None:
            known.refuse_another(model)
        self._models[model.name] = known or RecordedModel(
            record=model, manifest=manifest.as_posix()
        )

    def _write(self, manifest: Manifest, text: str, state: bytes | None) -> None:
        """Write a case; one that cannot be written is shown as such, an interrupted one is lost."""
        case = case_result_of(manifest)
        self._refuse_another(manifest.model, manifest.path)
        try:
            write_case(self._root, manifest, state, text=text)
            self.results.written.add(case.case_id)
        except AutoquantError:
            self.results.add(case)
            raise
        self.results.add(case)

    def _take_kept(self, case_id: str, report: WorkerReport, end: TestEnd) -> Verdict:
        manifest = earlier_manifest(self._root, self._plan.cases_by_id[case_id])
        if manifest is None:
            raise RecordError(
                f"{case_id}: its manifest was removed while the run was resumed; run it again"
            )
        settings, before = self._plan.settings, manifest.run_config
        selected = with_budget(manifest, settings.effective_bits, settings.cost)
        if selected is not manifest:
            self.results.selected_anew[case_id] = (
                f"bit budget {_budget(before)} -> {_budget(selected.run_config)}"
            )
            write_case(self._root, selected)
        else:
            complete_case(self._root, manifest)
        manifest = selected
        self.results.add(case_result_of(manifest))
        self.results.kept.add(case_id)
        return self._judge(manifest, report, end)

    def _take_scheme(self, manifest: SchemeManifest) -> None:
        """Write a scheme's manifest, unless the record of an exported checkpoint lies there."""
        path = self._root / manifest.path
        self._refuse_another(manifest.model, manifest.path)
        if manifest.export is None:  # an export has written its manifest itself
            refuse_replacing(self._root, path, manifest.model)
        self.results.schemes[manifest.case_id] = manifest
        if manifest.export is None and self._is_exported(path):
            return
        text = dump_scheme(manifest)
        if not path.is_file() or path.read_bytes() != text.encode():
            write_atomic(path, text)

    def _is_exported(self, path: Path) -> bool:
        with suppress(RecordError):
            return read_scheme_manifest(path, self._root).export is not None
        return False

    def _judge(self, manifest: Manifest, report: WorkerReport, end: TestEnd) -> Verdict:
        if self.gate is None or end.failure is not None or end.is_expected_failure:
            return PASSED
        if not self.gate.is_updating:
            return self.gate.judge(manifest, report.tolerances)
        self._unblessed[manifest.case.case_id] = manifest, report.tolerances
        return PASSED if end.nodeid in self._collected.case_ids else self._bless_now(manifest)

    def _bless(self, case_id: str | None) -> Verdict | None:
        """Bless a case once every test of it has ended and none has failed."""
        if case_id not in self._unblessed or case_id in self._failed or case_id in self.lost:
            return None
        return self._bless_now(self._unblessed[case_id][0])

    def _bless_now(self, manifest: Manifest) -> Verdict:
        assert self.gate is not None
        _, marker = self._unblessed.pop(manifest.case.case_id)
        return self.gate.judge(manifest, marker)

    def _log(self, outcome: LoggedOutcome) -> None:
        """Record an outcome that has no manifest, on disk before anyone reads the report."""
        self.results.add(outcome)
        append(self._root, self._public(outcome))

    def _public(self, outcome: LoggedOutcome) -> LoggedOutcome:
        """Return the outcome without folders of this machine, unless the host is recorded."""
        if self._plan.settings.record_host:
            return outcome
        prefix = f"{self._root}{os.sep}"
        if isinstance(outcome, FailedCase):
            return replace(outcome, problem=without_paths(outcome.problem.replace(prefix, "")))
        return replace(outcome, reason=without_paths(outcome.reason.replace(prefix, "")))

    def _unfinished(self) -> SessionResults:
        shard = self._plan.settings.shard
        return SessionResults(lost=self.lost, shard=None if shard is None else str(shard))


def _budget(run: RunConfig) -> str:
    return f"{run.effective_bits:g}" + (" (active)" if run.cost == "active" else "")
