"""Every pair, overlay and scheme of a run: the built-in ones and the user's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, TypeVar

from pytest_autoquant.allocation.scheme import Scheme, builtin_schemes
from pytest_autoquant.calibration.sizes import SIZES
from pytest_autoquant.errors import UsageError
from pytest_autoquant.formats.granularity import Granularity, builtin_granularities
from pytest_autoquant.formats.quant_pair import QuantPair, builtin_pairs
from pytest_autoquant.text import unknown

PAIR_FOLDER = "quant_pair"
GRANULARITY_FOLDER = "quant_granularity"
SCHEME_FOLDER = "scheme"

_T = TypeVar("_T")


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_N = TypeVar("_N", bound=_Named)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Pairs, overlays and schemes by name, built-in ones first."""

    pairs: Mapping[str, QuantPair]
    granularities: Mapping[str, Granularity]
    schemes: Mapping[str, Scheme]


def load_vocabulary(folder: Path | None = None) -> Vocabulary:
    """Return the built-in vocabulary, with the YAML definitions under ``folder`` added.

    A file may repeat a built-in definition; it then is the built-in.

    Raises:
        UsageError: the folder does not exist or has no definitions, a file is not valid, a name is
            defined twice or redefines a built-in. The message names the file and the key.
    """
    builtin = Vocabulary(
        pairs=MappingProxyType(builtin_pairs()),
        granularities=MappingProxyType(builtin_granularities()),
        schemes=MappingProxyType(builtin_schemes()),
    )
    return builtin if folder is None else _with_definitions(builtin, folder)


def select_vocabulary(
    vocabulary: Vocabulary, pairs: Sequence[str], granularities: Sequence[str]
) -> Vocabulary:
    """Keep the named pairs and overlays, and every scheme; an empty sequence keeps all.

    Raises:
        UsageError: a name is not in the vocabulary; the message lists the known ones.
    """
    hint = "add it as YAML under {}/ and pass --aq-conf"
    return Vocabulary(
        pairs=_select("pair", pairs, vocabulary.pairs, hint.format(PAIR_FOLDER)),
        granularities=_select(
            "overlay", granularities, vocabulary.granularities, hint.format(GRANULARITY_FOLDER)
        ),
        schemes=vocabulary.schemes,
    )


def select_sizes(sizes: Sequence[str]) -> tuple[str, ...]:
    """Keep the named sizes in the built-in order; an empty sequence keeps all.

    Raises:
        UsageError: a size is unknown.
    """
    return tuple(_select("size", sizes, SIZES, "give one or more of these"))


def _select(kind: str, wanted: Sequence[str], known: Mapping[str, _T], hint: str) -> dict[str, _T]:
    for name in wanted:
        if name not in known:
            raise unknown(kind, name, known, hint)
    return {name: item for name, item in known.items() if not wanted or name in wanted}


def _with_definitions(builtin: Vocabulary, folder: Path) -> Vocabulary:
    # Imported here: pydantic and PyYAML are needed for the user's files only.
    from pytest_autoquant.allocation.scheme_yaml import read_scheme
    from pytest_autoquant.formats.user_yaml import read_granularity, read_pair

    _check_folder(folder)
    return Vocabulary(
        pairs=_joined(builtin.pairs, folder / PAIR_FOLDER, read_pair),
        granularities=_joined(builtin.granularities, folder / GRANULARITY_FOLDER, read_granularity),
        schemes=_joined(builtin.schemes, folder / SCHEME_FOLDER, read_scheme),
    )


def _check_folder(folder: Path) -> None:
    names = (PAIR_FOLDER, GRANULARITY_FOLDER, SCHEME_FOLDER)
    if not folder.is_dir():
        raise UsageError(f"--aq-conf {folder}: no such folder; give one with {', '.join(names)}")
    if not any((folder / name).is_dir() for name in names):
        raise UsageError(
            f"--aq-conf {folder}: must have at least one of the folders {', '.join(names)}"
        )


def _joined(
    builtin: Mapping[str, _N], folder: Path, read: Callable[[Path], _N]
) -> Mapping[str, _N]:
    """Return the built-in definitions, then those of the folder's files in file order."""
    joined = dict(builtin)
    sources: dict[str, Path] = {}
    for path in _yaml_files(folder):
        definition = read(path)
        name = definition.name
        if name in sources:
            raise UsageError(f"{path}: name {name!r} is already defined in {sources[name]}")
        if name in builtin and definition != builtin[name]:
            raise UsageError(
                f"{path}: name {name!r} is built in and defined differently; choose another name"
            )
        sources[name] = path
        joined[name] = definition
    return MappingProxyType(joined)


def _yaml_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.y*ml") if path.suffix in (".yaml", ".yml"))
