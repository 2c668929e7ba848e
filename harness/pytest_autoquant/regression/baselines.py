"""The regression gate: a measured case against its blessed manifest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from pytest_autoquant.errors import RecordError, UsageError, WriteError
from pytest_autoquant.files import check_writable, write_atomic
from pytest_autoquant.manifests.case_result import case_result_of
from pytest_autoquant.manifests.sensitivity_manifest import (
    Manifest,
    dump_manifest,
    find_manifests,
    read_manifest,
)
from pytest_autoquant.options.settings import Settings
from pytest_autoquant.regression.comparison import Comparison, GroupDrift, compare

_SHOWN_GROUPS = 5
_GATED = "harness"
"""The field whose changes the gate is there to judge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerances:
    """How far a case may be from its baseline; ``comparison`` defines the measures.

    Attributes:
        spearman: least rank correlation of the groups.
        top_ten: least share of the ten most sensitive groups that must still be among the ten.
        total: largest relative drift of the total score, either way.
        group: largest relative drift of any group, either way.
        selected: most groups that the bit budget may treat otherwise.
    """

    spearman: float
    top_ten: float
    total: float
    group: float
    selected: int

    @classmethod
    def of(cls, settings: Settings) -> Tolerances:
        """Return the session's tolerances."""
        return cls(**{f.name: getattr(settings, f"tol_{f.name}") for f in fields(cls)})

    def with_marker(self, given: Mapping[str, float]) -> Tolerances:
        """Return these tolerances with a case's own in their place.

        Raises:
            UsageError: a name that is no tolerance, or a value that cannot be one.
        """
        kinds = {field.name: int if field.name == "selected" else float for field in fields(self)}
        for name, value in given.items():
            if name not in kinds or not _is_amount(value, kinds[name]):
                raise UsageError(
                    f"marker aq_tolerance: {name}={value!r} is not allowed; give numbers of at "
                    f"least 0 for {', '.join(sorted(kinds))}, a whole one for selected"
                )
        return replace(self, **given)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the gate says of a case: ``passed``, ``failed`` or ``skipped``, and why."""

    outcome: str
    text: str = ""


PASSED = Verdict(outcome="passed")


class Baselines:
    """A folder of blessed manifests."""

    def __init__(self, settings: Settings) -> None:
        """Read the folder.

        Raises:
            RecordError: it is empty or not there and nothing may be written to it, or it holds a
                manifest that cannot be read, or two of the same case.
        """
        assert settings.baseline is not None
        self._root = settings.baseline
        self._missing = settings.baseline_missing
        self._update = settings.update_baseline
        self._allowed = {_GATED, *settings.baseline_allow}
        self._known = _read(self._root)
        if not self._known and not self._update and self._missing != "write":
            raise RecordError(
                f"--aq-baseline {self._root}: holds no manifest; write the first ones with "
                "--aq-update-baseline"
            )

    def check(self) -> None:
        """Raise RecordError now if baselines could not be written later."""
        if self._update or self._missing == "write":
            check_writable(self._root)

    def judge(self, manifest: Manifest, measured_at: Path, tolerances: Tolerances) -> Verdict:
        """Compare a measured case with its baseline, or make it the baseline.

        A case whose own measurement failed is left as it is: it fails anyway.
        """
        if manifest.case.status == "failed":
            return PASSED
        path = self._root / manifest.path
        if self._update:
            return self._write(path, manifest)
        found = self._known.get(manifest.case.case_id)
        if found is None:
            return self._first(path, manifest)
        blessed_at, blessed = found
        comparison = compare(case_result_of(blessed), case_result_of(manifest))
        refused = [d for d in comparison.differing if d.field not in self._allowed]
        if refused:
            names = ",".join(difference.field for difference in refused)
            return _failed(
                f"{manifest.case.case_id}: its baseline was measured on something else: "
                f"{'; '.join(map(str, refused))}",
                f"compare all the same with --aq-baseline-allow {names}",
                blessed_at,
                measured_at,
            )
        problems = find_drifts(comparison, tolerances)
        if not problems:
            return PASSED
        lines = [f"{manifest.case.case_id} drifted from its baseline:"]
        lines += [f"  {problem}" for problem in problems]
        lines += _worst_groups(comparison.worst(_SHOWN_GROUPS))
        return _failed("\n".join(lines), "", blessed_at, measured_at)

    def judge_skip(self, case_id: str, reason: str) -> Verdict:
        """A case that used to be measured and is now skipped is a regression."""
        if case_id not in self._known or self._update:
            return PASSED
        path, _ = self._known[case_id]
        return Verdict(
            outcome="failed",
            text=(
                f"{case_id} used to be measured and is now skipped: {reason}\n"
                f"baseline: {path}\n"
                "if that is right, delete the baseline"
            ),
        )

    def _first(self, path: Path, manifest: Manifest) -> Verdict:
        if self._missing == "write":
            return self._write(path, manifest)
        text = (
            f"{manifest.case.case_id}: has no baseline at {path}; write it with "
            "--aq-update-baseline, or say --aq-baseline-missing skip or write"
        )
        return Verdict(outcome="skipped" if self._missing == "skip" else "failed", text=text)

    def _write(self, path: Path, manifest: Manifest) -> Verdict:
        """Write a baseline; where an equal measurement lies elsewhere, that one is replaced."""
        path, _ = self._known.get(manifest.case.case_id, (path, None))
        try:
            write_atomic(path, dump_manifest(manifest))
        except WriteError as error:
            return Verdict(outcome="failed", text=str(error))
        return PASSED


def find_drifts(comparison: Comparison, tolerances: Tolerances) -> tuple[str, ...]:
    """Say what exceeds its tolerance, by how much, and which option widens it."""
    problems = []
    for kind, names in (("new", comparison.new), ("vanished", comparison.vanished)):
        if names:
            problems.append(f"{len(names)} groups {kind}, such as {names[0]}")
    if comparison.spearman < tolerances.spearman:
        problems.append(
            f"rank correlation of the groups {comparison.spearman:.4f}, at least "
            f"{tolerances.spearman:g} wanted (--aq-tol-spearman)"
        )
    if comparison.top_ten < tolerances.top_ten:
        problems.append(
            f"{comparison.top_ten:.0%} of the ten most sensitive groups kept, at least "
            f"{tolerances.top_ten:.0%} wanted (--aq-tol-top-ten)"
        )
    if abs(comparison.total_drift) > tolerances.total:
        problems.append(
            f"total score {comparison.total_drift:+.2%}, {tolerances.total:.2%} allowed "
            "(--aq-tol-total)"
        )
    drifted = [group for group in comparison.groups if abs(group.drift) > tolerances.group]
    if drifted:
        problems.append(
            f"{len(drifted)} of {len(comparison.groups)} groups drifted by more than "
            f"{tolerances.group:.2%} (--aq-tol-group)"
        )
    if len(comparison.selection_changes) > tolerances.selected:
        problems.append(
            f"{len(comparison.selection_changes)} groups selected otherwise under the bit budget, "
            f"{tolerances.selected} allowed (--aq-tol-selected)"
        )
    return tuple(problems)


def _is_amount(value: object, kind: type) -> bool:
    allowed = (int,) if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed):
        return False
    return math.isfinite(value) and value >= 0


def _read(root: Path) -> dict[str, tuple[Path, Manifest]]:
    known: dict[str, tuple[Path, Manifest]] = {}
    for path in find_manifests(root) if root.is_dir() else []:
        manifest = read_manifest(path)
        case_id = manifest.case.case_id
        if case_id in known:
            raise RecordError(
                f"two baselines of {case_id}: {known[case_id][0]} and {path}; delete one"
            )
        known[case_id] = path, manifest
    return known


def _worst_groups(groups: Sequence[GroupDrift]) -> list[str]:
    lines = ["worst groups, score per token:"]
    for group in (group for group in groups if group.drift):
        lines.append(
            f"  {group.name}: {_score(group.before)} -> {_score(group.after)} "
            f"({group.drift:+.2%}), rank {group.rank_before} -> {group.rank_after}"
        )
    return lines


def _failed(text: str, hint: str, blessed_at: Path, measured_at: Path) -> Verdict:
    lines = [text, *([hint] if hint else [])]
    lines += [f"baseline: {blessed_at}", f"measured: {measured_at}"]
    lines.append("if the change is right, accept it with --aq-update-baseline")
    return Verdict(outcome="failed", text="\n".join(lines))


def _score(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"
