"""Cases that an earlier run measured, for ``--aq-resume``: the fingerprints of its manifests."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from pytest_autoquant.errors import RecordError
from pytest_autoquant.grid.case import Case
from pytest_autoquant.manifests.fingerprint import Fingerprint, fingerprint_of
from pytest_autoquant.manifests.layout import case_path
from pytest_autoquant.manifests.sensitivity_manifest import Manifest, read_manifest

#: Fingerprints of measured cases by ``case_id``.
Earlier = Mapping[str, Fingerprint]


def earlier_manifest(root: Path, case: Case) -> Manifest | None:
    """Return a case's manifest under ``root``; None if it is missing, not valid, or failed."""
    path = root / case_path(case)
    if not path.is_file():
        return None
    try:
        manifest = read_manifest(path)
    except RecordError:
        return None
    is_complete = manifest.case.case_id == case.case_id and manifest.case.status != "failed"
    return manifest if is_complete else None


def read_earlier(root: Path, cases: Iterable[Case]) -> Earlier:
    """Return the fingerprint of every case that has a valid manifest under ``root``."""
    manifests = ((case.case_id, earlier_manifest(root, case)) for case in cases)
    return {case_id: fingerprint_of(m) for case_id, m in manifests if m is not None}


def dump_earlier(earlier: Earlier) -> str:
    """Return fingerprints as JSON, for workers that do not see the report folder."""
    return json.dumps({case_id: asdict(each) for case_id, each in earlier.items()})


def load_earlier(text: str) -> Earlier:
    """Read the JSON that ``dump_earlier`` returns."""
    return {case_id: Fingerprint(**fields) for case_id, fields in json.loads(text).items()}
