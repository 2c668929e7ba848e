"""What an earlier run already measured: the fingerprints of the manifests it left."""

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

Earlier = Mapping[str, Fingerprint]
"""By ``case_id``."""


def earlier_manifest(root: Path, case: Case) -> Manifest | None:
    """Return a case's valid manifest under ``root``, None if there is none or it failed."""
    path = root / case_path(case)
    if not path.is_file():
        return None
    try:
        manifest = read_manifest(path)
    except RecordError:
        return None
    is_whole = manifest.case.case_id == case.case_id and manifest.case.status != "failed"
    return manifest if is_whole else None


def read_earlier(root: Path, cases: Iterable[Case]) -> Earlier:
    """Return the fingerprint of every case that has a valid manifest under ``root``."""
    found = ((case.case_id, earlier_manifest(root, case)) for case in cases)
    return {case_id: fingerprint_of(m) for case_id, m in found if m is not None}


def dump_earlier(earlier: Earlier) -> str:
    """Return fingerprints as JSON, for workers that do not see the report folder."""
    return json.dumps({case_id: asdict(found) for case_id, found in earlier.items()})


def load_earlier(text: str) -> Earlier:
    """Read what ``dump_earlier`` wrote."""
    return {case_id: Fingerprint(**found) for case_id, found in json.loads(text).items()}
