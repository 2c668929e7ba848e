"""From scores to a checkpoint: choose, quantize, measure on held-out captions, export, verify."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pytest_autoquant.calibration.captions import CaptionSet
from pytest_autoquant.errors import ExportError, MeasurementError, UsageError, WriteError
from pytest_autoquant.export.apply_scheme import applied
from pytest_autoquant.export.checkpoint.folder import refuse_existing, replace_folder
from pytest_autoquant.export.checkpoint.readme import README, readme
from pytest_autoquant.export.checkpoint.source_files import source_folder
from pytest_autoquant.export.checkpoint.verify import (
    Verification,
    calibrated_input_scales,
    verify_checkpoint,
)
from pytest_autoquant.export.checkpoint.write import write_checkpoint
from pytest_autoquant.export.exportable import ExportProbe
from pytest_autoquant.export.held_out import HeldOut
from pytest_autoquant.export.interaction import GroupsAlone, groups_alone
from pytest_autoquant.export.measured_search import choose_by_measurement
from pytest_autoquant.export.plain_choice import PlainChoices, plain_choices
from pytest_autoquant.export.scheme_groups import (
    Choice,
    Obstacles,
    choose,
    named_obstacles,
    unreachable,
)
from pytest_autoquant.export.vllm_load import NOT_ASKED, load_in_vllm
from pytest_autoquant.export.vllm_rules import Findings, check_export
from pytest_autoquant.export.vllm_rules.stored_formats import STORED_FORMATS
from pytest_autoquant.files import write_atomic
from pytest_autoquant.formats.effective_config import EffectiveConfig
from pytest_autoquant.grid.case import SchemeCase
from pytest_autoquant.manifests.layout import SCHEME_MANIFEST, scheme_folder
from pytest_autoquant.manifests.records.scheme_manifest import (
    ExportRecord,
    MeasuredDamage,
    SchemeManifest,
    SchemeRecord,
    SearchRecord,
    dump_scheme,
)
from pytest_autoquant.modelopt_support.layer_groups import layer_groups
from pytest_autoquant.modelopt_support.private_api import quantizes_each_expert
from pytest_autoquant.modelopt_support.status import SUPPORTED, Status, Support
from pytest_autoquant.models.device import peak_cuda_bytes
from pytest_autoquant.models.layers import Linear
from pytest_autoquant.scoring.machine.environment import memory_record
from pytest_autoquant.scoring.manifest.build_manifest import dataset_record
from pytest_autoquant.scoring.runner import MeasurementRunner
from pytest_autoquant.text import digits_apart, first_few, in_words, now_utc

#: Why other fused experts stay in 16 bits.
FUSED_EXPERTS = "a scheme cannot quantize the fused experts"


class UnexportedSchemeError(ExportError):
    """A scheme that was measured and could not be exported.

    Attributes:
        measured: its manifest without a checkpoint.
    """

    def __init__(self, message: str, measured: SchemeManifest) -> None:
        super().__init__(message)
        self.measured = measured


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decided:
    """A choice, how it was found, and what its damage is compared with."""

    choice: Choice
    search: SearchRecord | None
    alone: GroupsAlone
    plain: PlainChoices


class SchemeRunner:
    """Turns schemes into measured decisions and, if asked, into checkpoints.

    A scheme's damage is measured and its checkpoint is written in the same state of the model. What
    the damage is compared with is measured before, once per run. ``scheme_manifest.json`` is
    written here only inside a checkpoint, so that it appears together with it. Without an export
    nothing is written here: the caller writes the returned manifest.
    """

    def __init__(
        self,
        bench: MeasurementRunner,
        *,
        held_out: CaptionSet,
        target: str | None,
        root: Path | None,
        may_replace: bool,
        max_kl: float | None = None,
        load_in_vllm: bool = False,
    ) -> None:
        """Prepare nothing yet.

        Args:
            held_out: captions that measure the damage and calibrate nothing.
            target: runtime that must load the checkpoint; candidates that it cannot load are left
                out. None for no such limit.
            root: report root under which checkpoints are written, None to export nothing.
            may_replace: whether an existing checkpoint may be replaced.
            max_kl: the largest measured KL divergence that passes, in nats per token; None for no
                limit.
            load_in_vllm: whether each checkpoint is loaded in vLLM, where it is installed.
        """
        self._bench = bench
        self._held_out = HeldOut(bench, held_out)
        self._target = target
        self._root = root
        self._may_replace = may_replace
        self._max_kl = max_kl
        self._load_in_vllm = load_in_vllm
        self._probe = ExportProbe(bench.device)

    def support(self, case: SchemeCase) -> Support:
        """Return whether a scheme can be derived here, before any work."""
        left_out = self._left_out(case)
        if len(left_out) == len(case.candidates):
            return Support(
                status=Status.UNSUPPORTED,
                reason=f"--aq-target {self._target}: {'; '.join(left_out.values())}",
            )
        for combination in _without(case, left_out).candidates:
            support = self._bench.support(combination)
            if not support.is_supported:
                return support
            config = self._bench.config(combination)
            problem = self._probe.problem(config) or self._probe.mixture_problem(
                config, self._bench.architecture
            )
            if self._root is not None and problem is not None:
                return Support(status=Status.UNSUPPORTED, reason=problem)
        return self._reachable(_without(case, left_out), left_out)

    def _reachable(self, case: SchemeCase, left_out: Mapping[str, str]) -> Support:
        """Return whether the rule can be met by the shapes of the model's layers.

        Args:
            case: the scheme with the candidates that the target can load.
            left_out: why it cannot load the others, by candidate.

        Raises:
            ModelError: the model's config cannot be loaded.
        """
        model = self._bench.architecture
        problem = unreachable(
            case,
            self._configs(case),
            self._obstacles(case),
            layer_groups(model),
            {linear.name: linear for linear in model.linears},
            self._bench.cost,
        )
        if problem is None:
            return SUPPORTED
        reason = "; ".join((problem, *self._target_left_out(left_out)))
        return Support(status=Status.UNSUPPORTED, reason=reason)

    def _target_left_out(self, left_out: Mapping[str, str]) -> tuple[str, ...]:
        """Return the sentence that names the option behind missing candidates, if any are."""
        if not left_out:
            return ()
        why = "; ".join(left_out.values())
        return (f"--aq-target {self._target} left candidates out: {why}",)

    def _configs(self, case: SchemeCase) -> tuple[EffectiveConfig, ...]:
        return tuple(self._bench.config(combination) for combination in case.candidates)

    def _obstacles(self, case: SchemeCase) -> tuple[Obstacles, ...]:
        """Return the linears that cannot take a candidate's format, and why, by candidate."""
        return tuple(
            {
                linear.name: problem
                for linear in self._bench.architecture.linears
                if (problem := self._obstacle(config, linear)) is not None
            }
            for config in self._configs(case)
        )

    def _obstacle(self, config: EffectiveConfig, linear: Linear) -> str | None:
        """Return why a linear cannot take a format, None if it can.

        A format without any export is measured only, on every layer. Fused experts take one where
        ModelOpt quantizes them as they are.
        """
        if linear.is_fused:
            module = self._bench.architecture.module.get_submodule(linear.name)
            if not quantizes_each_expert(module):
                return FUSED_EXPERTS
        if self._probe.problem(config) is not None:
            return None
        return self._probe.layer_problem(config, linear)

    def derive(self, case: SchemeCase) -> SchemeManifest:
        """Score, choose, quantize, measure and, if asked, export a scheme.

        Raises:
            UsageError: the budget cannot be reached.
            MeasurementError: the scheme cannot be measured, its damage is not finite, or none stays
                within the ``max_kl`` that it asks for.
            ExportError: the checkpoint exists already, or the source's files cannot be found.
            UnexportedSchemeError: the measured damage is larger than allowed, the checkpoint cannot
                be written or is not the quantized model, or anything else failed after the
                measurement; the error carries what was measured.
        """
        target = self._checkpoint_folder(case)
        source = source_folder(self._bench.model, self._bench.source) if target else None
        phases = _Phases()
        decided = self._decide(case, phases)
        size, formats = case.size, decided.choice.formats
        measured: SchemeManifest | None = None
        try:
            with self._staged(target) as folder:
                phases.begin("quantize and measure")
                if folder is None:
                    measured = self._manifest(decided, self._held_out.damage(size, formats), phases)
                    self._check_damage(measured)
                    return measured
                with applied(self._bench.model, formats, self._bench.data(size).batches):
                    damage = self._held_out.damage_of_applied(size, formats)
                    measured = self._manifest(decided, damage, phases)
                    self._check_damage(measured)
                    phases.begin("export")
                    scales = calibrated_input_scales(self._bench.model, formats)
                    write_checkpoint(self._bench.model, source, folder)
                return self._finish(measured, decided.choice, scales, folder, source, phases)
        except Exception as error:  # whatever fails after the measurement, it is kept
            if measured is None:
                raise
            is_ours = isinstance(error, ExportError | WriteError)
            message = str(error) if is_ours else f"the export failed: {in_words(error)}"
            raise UnexportedSchemeError(message, measured) from error

    def _decide(self, case: SchemeCase, phases: _Phases) -> _Decided:
        """Choose the formats, and measure what they are compared with."""
        choice, search = self._choose(case, phases), None
        damage = partial(self._held_out.damage, case.size)
        if case.scheme.measure == "max_kl":
            phases.begin("search")
            limit = self._limit(case)
            choice, search = choose_by_measurement(choice, limit, damage, self._bench.progress)
        phases.begin("groups alone")
        used = dict.fromkeys(i for i in choice.allocation.chosen if i is not None)
        outcomes = self._held_out.alone(case.size, [choice.configs[i] for i in used])
        alone = groups_alone(choice, outcomes, self._held_out.data)
        phases.begin("uniform")
        plain = plain_choices(choice, damage)
        return _Decided(choice=choice, search=search, alone=alone, plain=plain)

    def _limit(self, case: SchemeCase) -> float:
        """Return the divergence that a search stays within: ``--aq-max-kl`` applies as well."""
        return min(case.scheme.amount, math.inf if self._max_kl is None else self._max_kl)

    def _check_damage(self, measured: SchemeManifest) -> None:
        """Refuse a scheme that is worse than asked for."""
        kl, most = measured.measured.kl, self._max_kl
        if most is None or kl <= most:
            return
        digits = digits_apart(kl, most, 4, "g")
        raise ExportError(
            f"scheme {measured.scheme.name}: the measured KL divergence is {kl:.{digits}g} nats "
            f"per token, --aq-max-kl allows {most:.{digits}g}; quantize fewer groups, or to more "
            "bits"
        )

    def _checkpoint_folder(self, case: SchemeCase) -> Path | None:
        """Return where the checkpoint goes, None without an export; refuse an existing one."""
        if self._root is None:
            return None
        target = self._root / scheme_folder(self._bench.source.name, case.scheme.name)
        refuse_existing(target, may_replace=self._may_replace)
        return target

    def _staged(self, target: Path | None) -> AbstractContextManager[Path | None]:
        """Return the folder to export to, for a ``with`` block; None without an export."""
        if target is None:
            return nullcontext()
        return replace_folder(target, may_replace=self._may_replace)

    def _choose(self, case: SchemeCase, phases: _Phases) -> Choice:
        left_out = self._left_out(case)
        kept, bench = _without(case, left_out), self._bench
        data = bench.data(case.size)
        phases.begin("score")
        measurements = bench.scores(case.size, kept.candidates)
        phases.begin("solve")
        obstacles = self._obstacles(kept)
        for sentence in named_obstacles(kept, obstacles):
            bench.warn(f"scheme {case.scheme.name}: {sentence}")
        try:
            return choose(
                kept,
                left_out,
                self._configs(kept),
                obstacles,
                measurements,
                data,
                {linear.name: linear for linear in bench.model.linears},
                bench.cost,
            )
        except UsageError as error:
            if not left_out:
                raise
            raise UsageError("; ".join((str(error), *self._target_left_out(left_out)))) from error

    def _left_out(self, case: SchemeCase) -> dict[str, str]:
        """Return why the target cannot load a candidate, by the candidates that it cannot load."""
        if self._target is None:
            return {}
        problems = {
            name: self._target_problem(case, place)
            for place, name in enumerate(case.scheme.candidates)
        }
        return {name: problem for name, problem in problems.items() if problem is not None}

    def _target_problem(self, case: SchemeCase, place: int) -> str | None:
        """Return why the target cannot load a candidate, None if it can."""
        config = self._bench.config(case.candidates[place])
        algorithm = self._probe.algorithm(config)
        if algorithm not in STORED_FORMATS:
            name = case.scheme.candidates[place]
            return f"{self._target} cannot load {name}, exported as {algorithm}"
        return self._probe.problem(config)

    def _notes(self, decided: _Decided) -> tuple[str, ...]:
        case, search = decided.choice.case, decided.search
        notes = [*decided.choice.notes, *self._held_out.notes(case.size)]
        if search is not None and search.limit < case.scheme.amount:
            notes.append(
                f"searched within {search.limit:.6g} nats per token: --aq-max-kl is smaller than "
                f"the scheme's max_kl of {case.scheme.amount:.6g}"
            )
        return tuple(notes)

    def _manifest(
        self, decided: _Decided, measured: MeasuredDamage, phases: _Phases
    ) -> SchemeManifest:
        """Return the manifest without an export.

        Raises:
            MeasurementError: the damage is not finite.
        """
        choice, bench = decided.choice, self._bench
        case, alone = choice.case, decided.alone
        if not math.isfinite(measured.kl):
            raise _not_finite(case, alone)
        return SchemeManifest(
            case_id=case.case_id,
            scheme=SchemeRecord(
                name=case.scheme.name,
                candidates=case.scheme.candidates,
                left_out=dict(choice.left_out),
                measure=case.scheme.measure,
                amount=case.scheme.amount,
                target=self._target,
                max_kl=self._max_kl,
                method=bench.method,
                cost=choice.cost,
            ),
            notes=self._notes(decided),
            model=bench.model.record,
            dataset=dataset_record(bench.data(case.size)),
            groups=tuple(
                replace(group, kl=kl) for group, kl in zip(choice.decisions, alone.kl, strict=True)
            ),
            allocation=choice.allocation_record,
            frontier=choice.frontier,
            measured=measured,
            export=None,
            environment=bench.environment,
            timing=phases.seconds(),
            memory=memory_record(peak_cuda_bytes(bench.device)),
            measured_at=now_utc(),
            search=decided.search,
            interaction=alone.interaction(measured),
            uniform=decided.plain.compare(measured, self._held_out.data),
        )

    def _finish(
        self,
        measured: SchemeManifest,
        choice: Choice,
        scales: Mapping[str, float],
        folder: Path,
        source: Path | None,
        phases: _Phases,
    ) -> SchemeManifest:
        """Verify the checkpoint and write the manifest into it; the model is unquantized again."""
        verified = verify_checkpoint(self._bench.model, choice.formats, scales, folder, source)
        record = self._export_record(verified, folder, source, phases)
        manifest = replace(measured, export=record, timing=phases.seconds())
        write_atomic(folder / README, readme(manifest, self._algorithms(choice)))
        write_atomic(folder / SCHEME_MANIFEST, dump_scheme(manifest))
        return manifest

    def _algorithms(self, choice: Choice) -> list[str]:
        """Return what the export names for the formats that the scheme uses."""
        named = {self._probe.algorithm(group.config) for group in choice.formats}
        return sorted(name for name in named if name is not None)

    def _export_record(
        self, verified: Verification, folder: Path, source: Path | None, phases: _Phases
    ) -> ExportRecord:
        phases.begin("check")
        findings = _checked(folder, source)
        load = NOT_ASKED
        if self._load_in_vllm:
            phases.begin("load")
            load = load_in_vllm(folder)
        return ExportRecord(
            bytes_before=verified.source_bytes,
            bytes_after=verified.stored_bytes,
            num_quantized=verified.num_quantized,
            largest_error=verified.largest_error,
            num_identical=verified.num_identical,
            violations=findings.violations,
            warnings=findings.warnings,
            not_checked=findings.not_checked,
            load=load.outcome,
            load_text=load.text,
        )


def _not_finite(case: SchemeCase, alone: GroupsAlone) -> MeasurementError:
    """Return the error of a damage that is not finite, with the groups that cause it if known."""
    where = f", nor is that of {first_few(alone.not_finite)} alone" if alone.not_finite else ""
    return MeasurementError(
        f"scheme {case.scheme.name}: the measured KL divergence is not finite{where}; leave "
        f"{' or '.join(case.scheme.candidates)} out, or give groups more bits"
    )


def _checked(folder: Path, source: Path | None) -> Findings:
    """Apply vLLM's rules; a check that fails is recorded, and the checkpoint stays."""
    try:
        return check_export(folder, source=source)
    except Exception as error:
        reason = str(error) if isinstance(error, ExportError) else in_words(error)
        return Findings(violations=(), warnings=(), not_checked=reason)


def _without(case: SchemeCase, left_out: Mapping[str, str]) -> SchemeCase:
    """Return a case without some of its candidates, of which one must be left."""
    kept = [place for place, name in enumerate(case.scheme.candidates) if name not in left_out]
    return replace(
        case,
        scheme=replace(case.scheme, candidates=tuple(case.scheme.candidates[i] for i in kept)),
        candidates=tuple(case.candidates[i] for i in kept),
    )


class _Phases:
    """Measures the wall time of consecutive phases."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._started: tuple[str, float] | None = None

    def begin(self, phase: str) -> None:
        """End the current phase and begin another."""
        self._end()
        self._started = (phase, time.perf_counter())

    def seconds(self) -> dict[str, float]:
        """End the current phase and return the seconds of every phase, in order."""
        self._end()
        return dict(self._seconds)

    def _end(self) -> None:
        if self._started is not None:
            phase, started = self._started
            self._seconds[phase] = time.perf_counter() - started
            self._started = None
