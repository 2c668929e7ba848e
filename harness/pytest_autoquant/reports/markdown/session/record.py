"""The record that ``summary.json`` holds."""

from __future__ import annotations

from pytest_autoquant.manifests.case_result import CaseResult
from pytest_autoquant.manifests.records.session_summary import (
    GroupShare,
    SessionSummary,
    SummaryCase,
)
from pytest_autoquant.reports.report_model import ReportModel


def session_summary(model: ReportModel) -> SessionSummary:
    """Return the record that ``summary.json`` holds."""
    results = model.results
    return SessionSummary(
        counts=results.counts,
        shard=results.shard,
        command=results.command,
        last_run=results.last_run,
        cases=tuple(map(_summary_case, results.cases.values())),
        skipped=tuple(results.skips.values()),
        errors=tuple(results.errors.values()),
        gated=results.gated,
        reruns=results.reruns,
        kept=tuple(sorted(results.kept)),
        lost=results.lost,
        structure=tuple(results.structures.values()),
        most_sensitive_groups=tuple(
            GroupShare(group=group, mean_share=share, model=ranking.model, method=ranking.method)
            for ranking in model.sensitive
            for group, share in ranking.groups
        ),
        left_out=tuple(results.left_out),
        write_errors=tuple(results.write_errors),
    )


def _summary_case(case: CaseResult) -> SummaryCase:
    return SummaryCase(
        case_id=case.case_id,
        pair=case.pair,
        granularity=case.granularity,
        size=case.size,
        status=case.status,
        alias_of=case.alias_of,
        experimental=case.experimental,
        problems=case.problems,
        effective_bits=case.effective_bits,
        active_bits=case.active_bits,
        total_score=case.total_score,
        top_group=case.top_group,
        selected_groups=case.selected_groups,
        manifest=case.manifest,
        num_groups=len(case.groups),
        selection_bits=case.selection.bits,
        selection_active_bits=case.selection.active_bits,
        is_satisfied=case.selection.is_satisfied,
        weights=case.source.weights,
        measured_at=case.source.measured_at,
        seconds=case.source.seconds,
        whole_model_kl=case.whole_kl,
    )
