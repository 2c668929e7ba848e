"""From scores to a checkpoint: decide, quantize, measure on held-out captions, export, check."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from pytest_autoquant.allocation.knapsack import select_formats_by_budget
from pytest_autoquant.allocation.scheme import Allocation, allocate
from pytest_autoquant.allocation.scored_group import ScoredGroup
from pytest_autoquant.calibration.batches import Batch, calibration_data, captions_digest
from pytest_autoquant.calibration.captions import CaptionSet
from pytest_autoquant.errors import MeasurementError
from pytest_autoquant.export.apply_scheme import Decision, applied, damage
from pytest_autoquant.export.vllm_load import load_in_vllm
from pytest_autoquant.export.vllm_rules import ALGORITHMS, MIXED, MIXED_ALGORITHMS, check_export
from pytest_autoquant.export.write_checkpoint import (
    check_target,
    export,
    exported_as,
    refusal,
    replacing,
)
from pytest_autoquant.files import write_atomic
from pytest_autoquant.formats.effective_config import UNQUANTIZED_BITS
from pytest_autoquant.grid.case import SchemeCase
from pytest_autoquant.manifests.layout import SCHEME_MANIFEST, scheme_folder
from pytest_autoquant.manifests.scheme_manifest import (
    AllocationRecord,
    ExportRecord,
    FrontierPoint,
    GroupDecision,
    MeasuredDamage,
    SchemeManifest,
    SchemeRecord,
    ViolationRecord,
    dump_scheme,
)
from pytest_autoquant.modelopt_support.status import SUPPORTED, Status, Support
from pytest_autoquant.models.loading import peak_cuda_bytes
from pytest_autoquant.scoring.build_manifest import dataset_record, per_token
from pytest_autoquant.scoring.engine import Measurement
from pytest_autoquant.scoring.environment import memory_record
from pytest_autoquant.scoring.runner import MeasurementRunner

BUDGETS = 64
"""Points of the frontier, evenly from the smallest choice to no quantization."""

HELD_OUT_BATCH = 8
_ALONE = tuple(name for name in ALGORITHMS if name != MIXED)


class SchemeRunner:
    """Derives schemes on a worker's bench.

    Args:
        held_out: captions that measure the damage and calibrate nothing.
        target: a runtime whose limits leave candidates out, None for none.
        root: report root below which checkpoints go, None to export nothing.
        may_replace: whether an existing export may be replaced.
    """

    def __init__(
        self,
        bench: MeasurementRunner,
        *,
        held_out: CaptionSet,
        target: str | None,
        root: Path | None,
        may_replace: bool,
    ) -> None:
        self._bench = bench
        self._held_out = held_out
        self._target = target
        self._root = root
        self._may_replace = may_replace

    def support(self, case: SchemeCase) -> Support:
        """Return whether a scheme can be derived here, before any work."""
        names, left_out = self._candidates(case)
        if not names:
            return Support(status=Status.UNSUPPORTED, reason="; ".join(left_out.values()))
        for combination in _only(case, names).candidates:
            found = self._bench.support(combination)
            if not found.is_supported:
                return found
            why = refusal(self._bench.config(combination), self._bench.device)
            if self._root is not None and why is not None:
                return Support(status=Status.UNSUPPORTED, reason=why)
        return SUPPORTED

    def derive(self, case: SchemeCase) -> SchemeManifest:
        """Derive a scheme.

        Raises:
            AutoquantError: it cannot be measured, its budget cannot be reached, or its checkpoint
                cannot be written or is not the quantized model.
        """
        if self._root is not None:
            check_target(self._target_folder(case), may_replace=self._may_replace)
        names, left_out = self._candidates(case)
        kept = _only(case, names)
        timing: dict[str, float] = {}
        bench = self._bench
        data = bench.data(case.size)
        with _timed(timing, "score"):
            measurements = bench.scores(case.size, kept.candidates)
        with _timed(timing, "solve"):
            groups = self._groups(kept, measurements)
            allocation = allocate(kept.scheme, groups)
            points = _frontier(groups)
        decisions = self._decisions(kept, measurements[0], allocation)
        batches = self._held_out_batches()
        with _timed(timing, "quantize and measure"), applied(bench.model, decisions, data.batches):
            found = damage(bench.model, batches)
        manifest = SchemeManifest(
            case_id=case.case_id,
            scheme=SchemeRecord(
                name=case.scheme.name,
                candidates=kept.scheme.candidates,
                left_out=left_out,
                measure=case.scheme.measure,
                amount=case.scheme.amount,
                target=self._target,
            ),
            model=bench.model.record,
            dataset=dataset_record(data),
            groups=_group_decisions(kept, groups, measurements[0], allocation),
            allocation=AllocationRecord(
                score=allocation.score,
                effective_bits=allocation.effective_bits,
                fraction_of_groups=allocation.fraction_of_groups,
                fraction_of_weights=allocation.fraction_of_weights,
            ),
            frontier=points,
            measured=MeasuredDamage(
                **asdict(found),
                captions=self._held_out.name,
                sha256=captions_digest(self._held_out.lines, ()),
            ),
            export=None,
            environment=bench.environment,
            timing=timing,
            memory=memory_record(peak_cuda_bytes(bench.device)),
        )
        return manifest if self._root is None else self._export(manifest, decisions, data.batches)

    def _export(
        self, manifest: SchemeManifest, decisions: Sequence[Decision], batches: Sequence[Batch]
    ) -> SchemeManifest:
        """Write the checkpoint with the manifest in it; both are there or neither is."""
        assert self._root is not None
        target = self._root / manifest.path.parent
        timing = dict(manifest.timing)
        with replacing(target, may_replace=self._may_replace) as folder:
            with _timed(timing, "export"):
                written = export(self._bench.model, self._bench.source, decisions, batches, folder)
            with _timed(timing, "check"):
                violations = check_export(folder)
            with _timed(timing, "load"):
                load = load_in_vllm(folder)
            record = ExportRecord(
                **asdict(written),
                violations=tuple(ViolationRecord(**asdict(found)) for found in violations),
                load=load.outcome,
                load_text=load.text,
            )
            manifest = replace(manifest, export=record, timing=timing)
            write_atomic(folder / SCHEME_MANIFEST, dump_scheme(manifest))
        return manifest

    def _target_folder(self, case: SchemeCase) -> Path:
        assert self._root is not None
        return self._root / scheme_folder(self._bench.source.name, case.scheme.name)

    def _candidates(self, case: SchemeCase) -> tuple[tuple[str, ...], dict[str, str]]:
        """Return the candidates that the target can load, and why it cannot load the others."""
        if self._target is None:
            return case.scheme.candidates, {}
        loadable = MIXED_ALGORITHMS if len(case.candidates) > 1 else _ALONE
        left_out = {}
        for name, combination in zip(case.scheme.candidates, case.candidates, strict=True):
            config = self._bench.config(combination)
            algorithm = exported_as(config, self._bench.device)
            why = refusal(config, self._bench.device)
            if algorithm not in loadable:
                left_out[name] = f"{self._target} cannot load {name}, exported as {algorithm}"
            elif why is not None:
                left_out[name] = why
        return tuple(name for name in case.scheme.candidates if name not in left_out), left_out

    def _groups(
        self, case: SchemeCase, measurements: Sequence[Measurement]
    ) -> tuple[ScoredGroup, ...]:
        """Put together what every candidate measures of a group.

        Raises:
            MeasurementError: a score is not finite.
        """
        data = self._bench.data(case.size)
        linears = {linear.name: linear for linear in self._bench.model.linears}
        stored = tuple(self._bench.config(c).effective_bits for c in case.candidates)
        found = []
        for groups in zip(*(m.groups for m in measurements), strict=True):
            scores = tuple(per_token(group, data) for group in groups)
            if not all(map(math.isfinite, scores)):
                raise MeasurementError(
                    f"scheme {case.test_id}: the score of {groups[0].modules[0]} is not finite; "
                    "leave that candidate out"
                )
            members = [linears[name] for name in groups[0].modules]
            found.append(
                ScoredGroup(
                    name=groups[0].modules[0],
                    scores=scores,
                    bits=stored,
                    weights=sum(linear.out_features * linear.in_features for linear in members),
                )
            )
        return tuple(found)

    def _decisions(
        self, case: SchemeCase, measurement: Measurement, allocation: Allocation
    ) -> tuple[Decision, ...]:
        configs = [self._bench.config(combination) for combination in case.candidates]
        return tuple(
            Decision(modules=group.modules, config=configs[chosen])
            for group, chosen in zip(measurement.groups, allocation.chosen, strict=True)
            if chosen is not None
        )

    def _held_out_batches(self) -> tuple[Batch, ...]:
        """Batch the held-out captions.

        Raises:
            CaptionError: none has two tokens.
        """
        data = calibration_data(
            self._held_out,
            self._bench.model.tokenize(self._held_out.lines),
            batch_size=HELD_OUT_BATCH,
            score_size=len(self._held_out.lines),
        )
        return data.batches


def _only(case: SchemeCase, names: tuple[str, ...]) -> SchemeCase:
    """Return the case with these of its candidates alone."""
    places = [case.scheme.candidates.index(name) for name in names]
    return replace(
        case,
        scheme=replace(case.scheme, candidates=names),
        candidates=tuple(case.candidates[place] for place in places),
    )


def _frontier(groups: Sequence[ScoredGroup]) -> tuple[FrontierPoint, ...]:
    groups = [group.with_unquantized() for group in groups]
    smallest = sum(min(group.bits) * group.weights for group in groups)
    least = smallest / sum(group.weights for group in groups)
    step = (UNQUANTIZED_BITS - least) / (BUDGETS - 1)
    budgets = [least + step * i for i in range(BUDGETS - 1)] + [UNQUANTIZED_BITS]
    return tuple(
        FrontierPoint(budget=budget, effective_bits=found.effective_bits, score=found.score)
        for budget, found in zip(budgets, select_formats_by_budget(groups, budgets), strict=True)
    )


def _group_decisions(
    case: SchemeCase,
    groups: Sequence[ScoredGroup],
    measurement: Measurement,
    allocation: Allocation,
) -> tuple[GroupDecision, ...]:
    names = case.scheme.candidates
    return tuple(
        GroupDecision(
            name=group.name,
            modules=scored.modules,
            weights=group.weights,
            format=None if chosen is None else names[chosen],
            scores=dict(zip(names, group.scores, strict=True)),
        )
        for group, scored, chosen in zip(groups, measurement.groups, allocation.chosen, strict=True)
    )


@contextmanager
def _timed(timing: dict[str, float], phase: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    timing[phase] = time.perf_counter() - started
