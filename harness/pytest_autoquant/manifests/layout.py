"""Where records lie below a report root, and how they are found again."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pytest_autoquant.grid.case import Case
from pytest_autoquant.text import slug

#: How the name of a sensitivity manifest ends, whatever wrote it: the rule of the practice.
ANY_MANIFEST_SUFFIX = "_quant_manifest.json"

#: How the name of a manifest of this harness ends.
MANIFEST_SUFFIX = f"_autoquant_lm{ANY_MANIFEST_SUFFIX}"
STATE_SUFFIX = "_autoquant_state.pt"
SCHEMES_FOLDER = "schemes"
SCHEME_MANIFEST = "scheme_manifest.json"

#: Folders of ``reports`` that are not published: throwaway runs, and what the gate compares with.
_UNPUBLISHED = ("tmp", "baseline")

#: Names at the report root that a model's folder must not take.
_RESERVED = re.compile(
    r"tmp|baseline|summary\.(md|json)|outcomes\.jsonl|schemes\.md|index\.html|grid-.*\.svg"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CasePlace:
    """The names that decide where a case's files lie."""

    model: str
    pair: str
    weight: str
    activation: str
    granularity: str
    size: str
    method: str


def manifest_path(place: CasePlace) -> Path:
    """Return a case's manifest path relative to the report root.

    The folders are ``model/weight-W-act-A/granularity/size``; ``size-kl_div`` for that method. A
    user's pair that shares its dtypes with a built-in pair adds its name to the second folder.
    """
    dtypes = f"weight-{place.weight}-act-{place.activation}"
    if place.pair != f"w{place.weight}_a{place.activation}":
        dtypes = f"{dtypes}-{place.pair}"
    last = place.size if place.method == "gradient" else f"{place.size}-{place.method}"
    folders = (slug(name) for name in (dtypes, place.granularity, last))
    return Path(model_folder(place.model), *folders, f"{slug(place.pair)}{MANIFEST_SUFFIX}")


def model_folder(model: str) -> str:
    """Return the folder of a model's results below the report root."""
    folder = slug(model)
    return f"{folder}-model" if _RESERVED.fullmatch(folder) else folder


def case_path(case: Case) -> Path:
    """Return where a case's manifest belongs, relative to the report root."""
    pair = case.combination.pair
    return manifest_path(
        CasePlace(
            model=case.model,
            pair=pair.name,
            weight=pair.weight,
            activation=pair.activation,
            granularity=case.combination.granularity.name,
            size=case.size,
            method=case.method,
        )
    )


def state_path(manifest: Path) -> Path:
    """Return where ModelOpt's search state lies beside a manifest file."""
    return manifest.with_name(manifest.name.removesuffix(ANY_MANIFEST_SUFFIX) + STATE_SUFFIX)


def find_manifests(root: Path) -> list[Path]:
    """Return every sensitivity manifest under ``root`` in path order.

    Those under ``root/tmp`` and ``root/baseline`` are left out: ``reports`` does not publish them.
    """
    return [path for path in _all_manifests(root) if not _is_unpublished(path, root)]


def find_unpublished(root: Path) -> list[Path]:
    """Return the sensitivity manifests that ``find_manifests`` leaves out, in path order."""
    return [path for path in _all_manifests(root) if _is_unpublished(path, root)]


def _all_manifests(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob(f"*{ANY_MANIFEST_SUFFIX}") if not path.is_dir())


def _is_unpublished(path: Path, root: Path) -> bool:
    return path.relative_to(root).parts[0] in _UNPUBLISHED


def scheme_folder(model: str, scheme: str) -> Path:
    """Return ``<model>/schemes/<scheme>``: the folder of a checkpoint and its manifest."""
    return Path(model_folder(model), SCHEMES_FOLDER, slug(scheme))


def find_schemes(root: Path) -> list[Path]:
    """Return every scheme manifest under ``root`` in path order."""
    return sorted(root.glob(f"*/{SCHEMES_FOLDER}/[!.]*/{SCHEME_MANIFEST}"))
