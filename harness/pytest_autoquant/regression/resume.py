"""Cases that an earlier run measured, for ``--aq-resume``: the fingerprints of its manifests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pytest_autoquant.errors import RecordError
from pytest_autoquant.grid.case import Case
from pytest_autoquant.manifests.fingerprint import Fingerprint, fingerprint_of
from pytest_autoquant.manifests.layout import case_path
from pytest_autoquant.manifests.records.outcome_log import read
from pytest_autoquant.manifests.records.outcomes import FailedCase
from pytest_autoquant.manifests.records.sensitivity_manifest import Manifest, read_manifest

#: Fingerprints by ``case_id``.
Earlier = Mapping[str, Fingerprint]


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierRun:
    """The cases that an earlier run left in the report folder.

    Attributes:
        fingerprints: fingerprint of every case that may be kept, by ``case_id``.
        unreadable: one sentence per manifest that cannot be read; its case is measured again.
    """

    fingerprints: Earlier = field(default_factory=dict)
    unreadable: tuple[str, ...] = ()


def read_earlier(
    root: Path, cases: Iterable[Case], *, checked: bool = False, whole: bool = False
) -> EarlierRun:
    """Read the manifests that an earlier run left of these cases.

    A failed case is not kept, whether its measurement failed or an assertion after it.

    Args:
        checked: whether a case is kept only if its scores were checked, where they can be.
        whole: likewise, only if its whole model was measured.

    Raises:
        RecordError: the outcome log cannot be read.
    """
    outcomes = read(root)
    failed = {outcome.case_id for outcome in outcomes if isinstance(outcome, FailedCase)}
    fingerprints, unreadable = {}, []
    for case in cases:
        try:
            manifest = earlier_manifest(root, case)
        except RecordError as error:
            unreadable.append(f"{error}; its case is measured again")
            continue
        if manifest is None or case.case_id in failed or _lacks(manifest, checked, whole):
            continue
        fingerprints[case.case_id] = fingerprint_of(manifest)
    return EarlierRun(fingerprints=fingerprints, unreadable=tuple(unreadable))


def _lacks(manifest: Manifest, checked: bool, whole: bool) -> bool:
    """Whether a manifest lacks what could have been measured beside the scores.

    Scores by ``kl_div`` are measured themselves, and need no check.
    """
    checked = checked and manifest.case.method != "kl_div"
    lacks = (checked and manifest.score_check is None) or (whole and manifest.whole_model is None)
    return lacks and manifest.run_config.engine == "replay"


def earlier_manifest(root: Path, case: Case) -> Manifest | None:
    """Return a case's manifest under ``root``; None if it is missing or the case failed.

    Raises:
        RecordError: the manifest cannot be read.
    """
    path = root / case_path(case)
    if not path.is_file():
        return None
    manifest = read_manifest(path)
    is_complete = manifest.case.case_id == case.case_id and manifest.case.status != "failed"
    return manifest if is_complete else None
