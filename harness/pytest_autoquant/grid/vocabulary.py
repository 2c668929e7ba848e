"""Every pair, overlay and scheme of a run: the built-in ones and the user's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol, TypeVar

from pytest_autoquant.allocation.scheme import Scheme, builtin_schemes
from pytest_autoquant.calibration.sizes import SIZES
from pytest_autoquant.errors import UsageError
from pytest_autoquant.formats.granularity import Granularity, builtin_granularities
from pytest_autoquant.formats.quant_pair import QuantPair, advice, builtin_pairs
from pytest_autoquant.text import unknown

if TYPE_CHECKING:
    from pytest_autoquant.formats.strict_yaml import Definition

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
    """Pairs, overlays and schemes by name, built-in ones first.

    Attributes:
        notes: what the user has to know about the files that were read.
    """

    pairs: Mapping[str, QuantPair]
    granularities: Mapping[str, Granularity]
    schemes: Mapping[str, Scheme]
    notes: tuple[str, ...] = ()


def load_vocabulary(conf: Path | None = None) -> Vocabulary:
    """Return the built-in vocabulary, with the definitions of a YAML file or folder added.

    A file may repeat a built-in definition; only its ``experimental`` may differ, and counts.

    Raises:
        UsageError: the path does not exist or has no definitions, a file is not valid, a name is
            defined twice or redefines a built-in. The message has a line for every problem, with
            the file and the key.
    """
    builtin = Vocabulary(
        pairs=MappingProxyType(builtin_pairs()),
        granularities=MappingProxyType(builtin_granularities()),
        schemes=MappingProxyType(builtin_schemes()),
    )
    return builtin if conf is None else _with_definitions(builtin, conf)


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


def _with_definitions(builtin: Vocabulary, conf: Path) -> Vocabulary:
    # Imported here: pydantic and PyYAML are needed for the user's files only.
    from pytest_autoquant.allocation.scheme_yaml import read_scheme
    from pytest_autoquant.formats.user_yaml import read_granularity, read_pair

    files = _files(conf)
    problems: list[str] = []
    notes: list[str] = []

    def joined(
        known: Mapping[str, _N], folder: str, read: Callable[[Path], Definition[_N]]
    ) -> Mapping[str, _N]:
        return _joined(known, files.get(folder, ()), read, problems, notes)

    vocabulary = Vocabulary(
        pairs=joined(builtin.pairs, PAIR_FOLDER, read_pair),
        granularities=joined(builtin.granularities, GRANULARITY_FOLDER, read_granularity),
        schemes=joined(builtin.schemes, SCHEME_FOLDER, read_scheme),
    )
    if problems:
        raise UsageError("\n".join(problems))
    return replace(vocabulary, notes=tuple(notes))


def _files(conf: Path) -> dict[str, tuple[Path, ...]]:
    """Return the YAML files by the folder in which they lie; a single file by what it defines."""
    names = (PAIR_FOLDER, GRANULARITY_FOLDER, SCHEME_FOLDER)
    if conf.is_file():
        return {_kind_of(conf): (conf,)}
    if not conf.is_dir():
        raise UsageError(
            f"--aq-conf {conf}: no such file or folder; give a YAML file, or a folder with "
            f"{', '.join(names)}"
        )
    if not any((conf / name).is_dir() for name in names):
        raise UsageError(
            f"--aq-conf {conf}: must have at least one of the folders {', '.join(names)}; to use "
            "a single file, give its path"
        )
    return {name: tuple(_yaml_files(conf / name)) for name in names}


def _kind_of(path: Path) -> str:
    """Return the folder in which a file belongs, by its keys."""
    from pytest_autoquant.formats.strict_yaml import read_document

    document = read_document(path)
    keys = document if isinstance(document, Mapping) else {}
    if "quant_cfg_overrides" in keys:
        return GRANULARITY_FOLDER
    return SCHEME_FOLDER if "candidates" in keys else PAIR_FOLDER


def _joined(
    builtin: Mapping[str, _N],
    files: Sequence[Path],
    read: Callable[[Path], Definition[_N]],
    problems: list[str],
    notes: list[str],
) -> Mapping[str, _N]:
    """Return the built-in definitions, then those of the files in their order.

    A file that cannot be used adds to ``problems`` and hides no other.
    """
    joined = dict(builtin)
    sources: dict[str, Path] = {}
    for path in files:
        try:
            definition = read(path)
            _check_name(path, definition.value, builtin, sources)
        except UsageError as error:
            problems.append(str(error))
            continue
        sources[definition.value.name] = path
        joined[definition.value.name] = definition.value
        notes += definition.notes
    return MappingProxyType(joined)


def _check_name(
    path: Path, definition: _N, builtin: Mapping[str, _N], sources: Mapping[str, Path]
) -> None:
    name = definition.name
    if name in sources:
        raise UsageError(f"{path}: name {name!r} is already defined in {sources[name]}")
    known = builtin.get(name)
    differing = () if known is None else _differences(definition, known)
    if differing:
        hint = _hint(definition)
        raise UsageError(
            f"{path}: name {name!r} is built in and defined differently: "
            f"{', '.join(differing)}; {hint}choose another name"
        )


def _differences(definition: object, builtin: object) -> tuple[str, ...]:
    """Return every key in which two definitions differ, with both values."""
    given, known = _written(definition), _written(builtin)
    return tuple(
        f"{key} is {_shown(given.get(key))}, built in {_shown(known.get(key))}"
        for key in {**given, **known}
        if given.get(key) != known.get(key)
    )


def _written(definition: object) -> dict[str, object]:
    """Return what a file of this definition says, without a flag that changes no number."""
    if isinstance(definition, QuantPair):
        return {key: getattr(definition, key) for key in ("weight", "activation", "format_name")}
    if isinstance(definition, Granularity):
        return dict(definition.overrides)
    assert isinstance(definition, Scheme)
    return {"candidates": list(definition.candidates), definition.measure: definition.amount}


def _shown(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _shown(item) for key, item in value.items()}
    return "not given" if value is None else value


def _hint(definition: object) -> str:
    if not isinstance(definition, QuantPair):
        return ""
    return f"{advice(definition.weight, definition.activation, definition.format_name)}, or "


def _yaml_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.y*ml") if path.suffix in (".yaml", ".yml"))
