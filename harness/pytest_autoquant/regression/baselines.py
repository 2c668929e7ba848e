"""The regression gate: compare a measured case with its blessed manifest."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Literal

from pytest_autoquant.errors import RecordError, WriteError
from pytest_autoquant.files import check_writable, write_atomic
from pytest_autoquant.manifests.case_result import case_result_of
from pytest_autoquant.manifests.fingerprint import Difference
from pytest_autoquant.manifests.layout import find_manifests
from pytest_autoquant.manifests.records.sensitivity_manifest import (
    Manifest,
    dump_manifest,
    read_manifest,
)
from pytest_autoquant.manifests.selection import with_budget
from pytest_autoquant.regression.comparison import GroupDrift, compare
from pytest_autoquant.regression.tolerances import Tolerances, find_drifts
from pytest_autoquant.text import digits_apart

#: What the gate does with a case that has no baseline.
Missing = Literal["fail", "skip", "write"]

#: Groups listed for a case that drifted.
_SHOWN_GROUPS = 5

#: Fingerprint fields that may always differ: the gate exists to judge changes of this package.
_ALWAYS_ALLOWED = ("harness",)


class Outcome(Enum):
    """What the gate decides for a case."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The gate's decision for a case; ``text`` is the reason, empty for a passed case."""

    outcome: Outcome
    text: str = ""


PASSED = Verdict(outcome=Outcome.PASSED)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Baseline:
    path: Path
    manifest: Manifest


class Baselines:
    """A folder of blessed manifests."""

    def __init__(
        self, root: Path, *, missing: Missing, update: bool, allowed: Collection[str]
    ) -> None:
        """Read the folder.

        Args:
            missing: what to do with a case that has no baseline.
            update: make every measured case the new baseline instead of comparing it.
            allowed: fingerprint fields that may differ from the baseline's.

        Raises:
            RecordError: the folder is missing or has no manifest although nothing may be written
                to it, a manifest cannot be read, or two manifests are of the same case.
        """
        self._root = root
        self._missing = missing
        self._update = update
        self._allowed = {*_ALWAYS_ALLOWED, *allowed}
        self._known = _read(root)
        if not self._known and not self._is_written:
            raise RecordError(
                f"--aq-baseline {root}: the folder has no manifest; write the first ones with "
                "--aq-update-baseline"
            )

    @property
    def _is_written(self) -> bool:
        return self._update or self._missing == "write"

    def check(self) -> None:
        """Check that baselines that this run may write can be written.

        Raises:
            WriteError: the folder cannot be written.
        """
        if self._is_written:
            check_writable(self._root, name="baseline folder", option="--aq-baseline")

    def judge(self, manifest: Manifest, measured_at: Path, tolerances: Tolerances) -> Verdict:
        """Compare a measured case with its baseline, or make it the baseline.

        The baseline's groups are selected under the bit budget of the measured case.

        A case with status ``failed`` passes: its own test fails already.
        """
        if manifest.case.status == "failed":
            return PASSED
        if self._update:
            return self._write(manifest)
        baseline = self._known.get(manifest.case.case_id)
        if baseline is None:
            return self._judge_missing(manifest)
        return self._compare(baseline, manifest, measured_at, tolerances)

    def judge_skip(self, case_id: str, reason: str) -> Verdict:
        """Fail a skipped case that has a baseline, unless baselines are updated."""
        if case_id not in self._known or self._update:
            return PASSED
        return Verdict(
            outcome=Outcome.FAILED,
            text=(
                f"{case_id} is skipped but has a baseline: {reason}\n"
                f"baseline: {self._known[case_id].path}\n"
                "if the skip is right, delete the baseline"
            ),
        )

    def _compare(
        self, baseline: _Baseline, manifest: Manifest, measured_at: Path, tolerances: Tolerances
    ) -> Verdict:
        run = manifest.run_config
        blessed = with_budget(baseline.manifest, run.effective_bits, run.cost)
        comparison = compare(case_result_of(blessed), case_result_of(manifest))
        refused = [d for d in comparison.differing if d.field not in self._allowed]
        if refused:
            lines = _different_inputs(manifest.case.case_id, refused)
        else:
            drifts = find_drifts(comparison, tolerances)
            if not drifts:
                return PASSED
            lines = [f"{manifest.case.case_id} drifted from its baseline:"]
            lines += [f"  {drift}" for drift in drifts]
            lines += _worst_groups(comparison.worst(_SHOWN_GROUPS))
        lines += [f"baseline: {baseline.path}", f"measured: {measured_at}"]
        lines.append("if the change is right, accept it with --aq-update-baseline")
        return Verdict(outcome=Outcome.FAILED, text="\n".join(lines))

    def _judge_missing(self, manifest: Manifest) -> Verdict:
        if self._missing == "write":
            return self._write(manifest)
        text = (
            f"{manifest.case.case_id} has no baseline at {self._root / manifest.path}; write it "
            "with --aq-update-baseline, or choose --aq-baseline-missing skip or write"
        )
        is_skipped = self._missing == "skip"
        return Verdict(outcome=Outcome.SKIPPED if is_skipped else Outcome.FAILED, text=text)

    def _write(self, manifest: Manifest) -> Verdict:
        """Write a baseline in place of the case's present one, wherever that lies."""
        known = self._known.get(manifest.case.case_id)
        path = self._root / manifest.path if known is None else known.path
        try:
            write_atomic(path, dump_manifest(manifest))
        except WriteError as error:
            return Verdict(outcome=Outcome.FAILED, text=str(error))
        return PASSED


def _read(root: Path) -> dict[str, _Baseline]:
    known: dict[str, _Baseline] = {}
    for path in find_manifests(root) if root.is_dir() else []:
        manifest = read_manifest(path)
        case_id = manifest.case.case_id
        if case_id in known:
            raise RecordError(
                f"two baselines of {case_id}: {known[case_id].path} and {path}; delete one"
            )
        known[case_id] = _Baseline(path=path, manifest=manifest)
    return known


def _different_inputs(case_id: str, refused: Sequence[Difference]) -> list[str]:
    names = ",".join(difference.field for difference in refused)
    return [
        f"{case_id}: the baseline was measured with other inputs: {'; '.join(map(str, refused))}",
        f"to compare nevertheless, pass --aq-baseline-allow {names}",
    ]


def _worst_groups(groups: Sequence[GroupDrift]) -> list[str]:
    return [
        "worst groups, score per token:",
        *(
            f"  {group.name}: {_scores(group)}, rank {group.rank_before} -> {group.rank_after}"
            for group in groups
            if group.drift
        ),
    ]


def _scores(group: GroupDrift) -> str:
    """Return both scores and the drift, with enough digits to see that they differ."""
    drift = f"{group.drift:+.{digits_apart(group.drift, 0.0, 2, '%')}%}"
    before, after = group.before, group.after
    digits = 4 if before is None or after is None else digits_apart(before, after, 4, "g")
    first, second = (
        "not finite" if score is None else f"{score:.{digits}g}" for score in (before, after)
    )
    return f"{first} -> {second} ({drift})"
