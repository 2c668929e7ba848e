"""The regression gate of a run: each finished case against its baseline.

It runs in the controller, so that workers need not see the baselines.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pytest_autoquant.errors import AutoquantError
from pytest_autoquant.manifests.records.sensitivity_manifest import Manifest
from pytest_autoquant.options.settings import Settings
from pytest_autoquant.regression.baselines import Baselines, Outcome, Verdict
from pytest_autoquant.regression.tolerances import Tolerances


class Gate:
    """Compares cases with a folder of baselines, or blesses them.

    Raises:
        AutoquantError: the folder holds no manifest, or one that cannot be read.
    """

    def __init__(self, settings: Settings, baseline: Path, root: Path) -> None:
        self._root = root
        self._baselines = Baselines(
            baseline,
            missing=settings.baseline_missing,  # type: ignore[arg-type]
            update=settings.update_baseline,
            allowed=settings.baseline_allow,
        )
        self._tolerances = Tolerances(
            spearman=settings.tol_spearman,
            top_ten=settings.tol_top_ten,
            total=settings.tol_total,
            group=settings.tol_group,
            selected=settings.tol_selected,
        )
        self.is_updating = settings.update_baseline
        self.num_judged = 0
        self.failures: dict[str, str] = {}

    def check_folder(self) -> None:
        """Raise WriteError if baselines are to be written and cannot be."""
        self._baselines.check()

    def judge(self, manifest: Manifest, marker: Mapping[str, float] | None) -> Verdict:
        """Compare a measured case with its baseline, or bless it.

        Args:
            marker: the case's own tolerances.
        """
        try:
            tolerances = self._tolerances.with_marker(marker or {})
            verdict = self._baselines.judge(manifest, self._root / manifest.path, tolerances)
        except AutoquantError as error:
            verdict = Verdict(outcome=Outcome.FAILED, text=str(error))
        return self._note(manifest.case.case_id, verdict)

    def judge_skip(self, case_id: str, reason: str) -> Verdict:
        """Compare a skipped case with its baseline: a case that ran before must run."""
        verdict = self._baselines.judge_skip(case_id, reason)
        return self._note(case_id, verdict) if verdict.outcome is Outcome.FAILED else verdict

    def _note(self, case_id: str, verdict: Verdict) -> Verdict:
        self.num_judged += verdict.outcome is not Outcome.SKIPPED
        if verdict.outcome is Outcome.FAILED:
            self.failures[case_id] = verdict.text
        return verdict
