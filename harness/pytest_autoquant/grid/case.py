"""Cases: one measurement each, with frozen inputs and a stable id."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

from pytest_autoquant.allocation.scheme import Scheme
from pytest_autoquant.calibration.sizes import SIZES
from pytest_autoquant.formats.granularity import Granularity
from pytest_autoquant.formats.quant_pair import QuantPair
from pytest_autoquant.grid.vocabulary import Vocabulary
from pytest_autoquant.text import unknown

_T = TypeVar("_T")

ALL_SCHEMES = "all"

METHODS = ("gradient", "kl_div")


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """A pair under an overlay: what one structure case checks."""

    pair: QuantPair
    granularity: Granularity

    @property
    def id(self) -> str:
        """Test id, e.g. ``wint4_aint8-w_group64``."""
        return f"{self.pair.name}-{self.granularity.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One sensitivity measurement: model, pair, granularity, size and method."""

    model: str
    combination: Combination
    size: str
    method: str

    @property
    def id(self) -> str:
        """Test id, e.g. ``wint4_aint8-w_group64-small``."""
        return f"{self.combination.id}-{self.size}"

    @property
    def case_id(self) -> str:
        """Stable id over models and methods: ``model/pair/granularity/size/method``."""
        parts = (self.combination.pair.name, self.combination.granularity.name)
        return "/".join((self.model, *parts, self.size, self.method))


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemeCase:
    """A scheme applied to a model.

    Attributes:
        candidates: what the scheme's candidate names stand for, in their order.
        size: the calibration set that scores and calibrates.
    """

    model: str
    scheme: Scheme
    candidates: tuple[Combination, ...]
    size: str

    @property
    def id(self) -> str:
        """Test id: the scheme's name."""
        return self.scheme.name

    @property
    def case_id(self) -> str:
        """Stable id over models: ``model/schemes/scheme/size``."""
        return f"{self.model}/schemes/{self.scheme.name}/{self.size}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseName:
    """What a ``case_id`` names, also of cases that no vocabulary here knows."""

    case_id: str
    model: str
    pair: str
    granularity: str
    size: str
    method: str

    @classmethod
    def parse(cls, case_id: str) -> CaseName | None:
        """Take a ``case_id`` apart; None if it is none."""
        parts = case_id.rsplit("/", 4)
        if len(parts) != 5:
            return None
        model, pair, granularity, size, method = parts
        return cls(
            case_id=case_id,
            model=model,
            pair=pair,
            granularity=granularity,
            size=size,
            method=method,
        )


def scheme_cases(
    vocabulary: Vocabulary, selected: Sequence[str], *, model: str, size: str
) -> tuple[SchemeCase, ...]:
    """Return a case per selected scheme, every one if none is selected or ``all`` is.

    Raises:
        UsageError: an unknown scheme, or a candidate that is no pair and granularity.
    """
    for name in selected:
        if name not in (*vocabulary.schemes, ALL_SCHEMES):
            hint = "add it as YAML under scheme/ and pass --aq-conf"
            raise unknown("scheme", name, vocabulary.schemes, hint)
    every = not selected or ALL_SCHEMES in selected
    names = vocabulary.schemes if every else dict.fromkeys(selected)
    return tuple(
        SchemeCase(
            model=model,
            scheme=vocabulary.schemes[name],
            candidates=tuple(
                _candidate(vocabulary, name, text) for text in vocabulary.schemes[name].candidates
            ),
            size=size,
        )
        for name in names
    )


def _candidate(vocabulary: Vocabulary, scheme: str, text: str) -> Combination:
    """Resolve ``pair`` or ``pair-granularity``."""
    pair, _, granularity = text.partition("-")
    if pair not in vocabulary.pairs:
        hint = "give a quant pair"
        raise unknown(f"scheme {scheme!r}: candidate", pair, vocabulary.pairs, hint)
    name = granularity or "default"
    if name not in vocabulary.granularities:
        hint = "give an overlay"
        raise unknown(f"scheme {scheme!r}: overlay", name, vocabulary.granularities, hint)
    return Combination(pair=vocabulary.pairs[pair], granularity=vocabulary.granularities[name])


def select_vocabulary(
    vocabulary: Vocabulary, pairs: Sequence[str], granularities: Sequence[str]
) -> Vocabulary:
    """Keep the named pairs and overlays; an empty sequence keeps them all.

    Raises:
        UsageError: a name that is not in the vocabulary, with the ones that are.
    """
    hint = "add it as YAML and pass --aq-conf"
    return Vocabulary(
        pairs=_pick("pair", pairs, vocabulary.pairs, f"{hint} (quant_pair/)"),
        granularities=_pick(
            "overlay", granularities, vocabulary.granularities, f"{hint} (quant_granularity/)"
        ),
        schemes=vocabulary.schemes,
    )


def select_sizes(sizes: Sequence[str]) -> tuple[str, ...]:
    """Keep the named sizes in the built-in order; an empty sequence keeps them all."""
    return tuple(_pick("size", sizes, SIZES, "give some of these"))


def combinations(vocabulary: Vocabulary) -> Iterator[Combination]:
    """Yield every pair under every overlay, pair by pair."""
    for pair, granularity in product(vocabulary.pairs.values(), vocabulary.granularities.values()):
        yield Combination(pair=pair, granularity=granularity)


def cases(
    vocabulary: Vocabulary, sizes: Iterable[str], *, model: str, method: str
) -> Iterator[Case]:
    """Yield every case of the grid, size by size so that a worker captures each size once."""
    for size in sizes:
        for combination in combinations(vocabulary):
            yield Case(model=model, combination=combination, size=size, method=method)


def _pick(kind: str, wanted: Sequence[str], known: Mapping[str, _T], hint: str) -> dict[str, _T]:
    for name in wanted:
        if name not in known:
            raise unknown(kind, name, known, hint)
    return {name: item for name, item in known.items() if not wanted or name in wanted}
