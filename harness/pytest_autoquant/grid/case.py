"""Cases: one measurement each, with frozen inputs and a stable id."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Protocol

from pytest_autoquant.allocation.scheme import Scheme
from pytest_autoquant.formats.granularity import Granularity
from pytest_autoquant.formats.quant_pair import QuantPair
from pytest_autoquant.grid.vocabulary import SCHEME_FOLDER, Vocabulary
from pytest_autoquant.text import unknown

#: Name that selects every scheme.
ALL_SCHEMES = "all"

METHODS = ("gradient", "kl_div", "fisher")


class CaseParameter(Protocol):
    """What pytest needs to parametrize a test over cases, combinations or schemes."""

    @property
    def test_id(self) -> str:
        """Id of the test, in brackets after the function's name."""

    @property
    def combinations(self) -> tuple[Combination, ...]:
        """Every combination that the test quantizes with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """A pair under an overlay: what one structure case checks."""

    pair: QuantPair
    granularity: Granularity

    @property
    def test_id(self) -> str:
        """Test id, e.g. ``wint4_aint8-w_group64``."""
        return f"{self.pair.name}-{self.granularity.name}"

    @property
    def combinations(self) -> tuple[Combination, ...]:
        """The combination itself."""
        return (self,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One sensitivity measurement: model, pair, granularity, size and method."""

    model: str
    combination: Combination
    size: str
    method: str

    @property
    def test_id(self) -> str:
        """Test id, e.g. ``wint4_aint8-w_group64-small``."""
        return f"{self.combination.test_id}-{self.size}"

    @property
    def case_id(self) -> str:
        """Stable id over models and methods: ``model/pair/granularity/size/method``."""
        parts = (self.combination.pair.name, self.combination.granularity.name)
        return "/".join((self.model, *parts, self.size, self.method))

    @property
    def combinations(self) -> tuple[Combination, ...]:
        """The case's one combination."""
        return (self.combination,)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemeCase:
    """A scheme applied to a model.

    Attributes:
        candidates: the combinations that ``scheme.candidates`` name, in their order.
        size: the calibration set that scores and calibrates.
    """

    model: str
    scheme: Scheme
    candidates: tuple[Combination, ...]
    size: str

    @property
    def test_id(self) -> str:
        """Test id: the scheme's name."""
        return self.scheme.name

    @property
    def case_id(self) -> str:
        """Stable id over models: ``model/schemes/scheme/size``."""
        return f"{self.model}/schemes/{self.scheme.name}/{self.size}"

    @property
    def combinations(self) -> tuple[Combination, ...]:
        """The scheme's candidates."""
        return self.candidates


def is_scheme_id(case_id: str) -> bool:
    """Return whether an id is one of ``SchemeCase.case_id``."""
    parts = case_id.split("/")
    return len(parts) == 4 and parts[1] == "schemes"


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseId:
    """The parts of a sensitivity case's ``case_id``; its names need not be in the vocabulary."""

    case_id: str
    model: str
    pair: str
    granularity: str
    size: str
    method: str

    @classmethod
    def parse(cls, case_id: str) -> CaseId | None:
        """Split a ``case_id`` into its parts; None if it does not have five."""
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


def combinations(vocabulary: Vocabulary) -> Iterator[Combination]:
    """Yield every pair under every overlay, pair by pair."""
    for pair, granularity in product(vocabulary.pairs.values(), vocabulary.granularities.values()):
        yield Combination(pair=pair, granularity=granularity)


def cases(
    vocabulary: Vocabulary, sizes: Iterable[str], *, model: str, method: str
) -> Iterator[Case]:
    """Yield every case of the grid, size by size so that a worker records each size once."""
    for size in sizes:
        for combination in combinations(vocabulary):
            yield Case(model=model, combination=combination, size=size, method=method)


def scheme_cases(
    vocabulary: Vocabulary, selected: Sequence[str], *, model: str, size: str
) -> tuple[SchemeCase, ...]:
    """Return the named schemes, in the order given and each once, as cases.

    No name, or ``all``, selects every scheme in the vocabulary's order.

    Raises:
        UsageError: an unknown scheme, or a candidate that is not a known pair and overlay.
    """
    hint = f"add it as YAML under {SCHEME_FOLDER}/ and pass --aq-conf"
    for name in selected:
        if name not in (*vocabulary.schemes, ALL_SCHEMES):
            raise unknown("scheme", name, vocabulary.schemes, hint)
    is_every = not selected or ALL_SCHEMES in selected
    names = vocabulary.schemes if is_every else dict.fromkeys(selected)
    return tuple(_scheme_case(vocabulary, vocabulary.schemes[n], model, size) for n in names)


def _scheme_case(vocabulary: Vocabulary, scheme: Scheme, model: str, size: str) -> SchemeCase:
    candidates = tuple(_candidate(vocabulary, scheme, text) for text in scheme.candidates)
    return SchemeCase(model=model, scheme=scheme, candidates=candidates, size=size)


def _candidate(vocabulary: Vocabulary, scheme: Scheme, text: str) -> Combination:
    """Return the combination that ``pair`` or ``pair-granularity`` names."""
    pair, _, granularity = text.partition("-")
    where = f"scheme {scheme.name!r}: candidate {text!r}:"
    if pair not in vocabulary.pairs:
        hint = "give pair or pair-overlay"
        raise unknown(f"{where} pair", pair, vocabulary.pairs, hint)
    name = granularity or "default"
    if name not in vocabulary.granularities:
        hint = "give pair or pair-overlay"
        raise unknown(f"{where} overlay", name, vocabulary.granularities, hint)
    return Combination(pair=vocabulary.pairs[pair], granularity=vocabulary.granularities[name])
