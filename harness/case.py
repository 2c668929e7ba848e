"""Cases: one measurement each, with frozen inputs and a stable id."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType
from typing import TypeVar

from harness.conf import Vocabulary
from harness.granularity import Granularity
from harness.names import unknown
from harness.pair import QuantPair

_T = TypeVar("_T")

SIZES: Mapping[str, int] = MappingProxyType({"small": 16, "medium": 128, "large": 512})
"""Calibration captions per size."""

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


def select_vocabulary(
    vocabulary: Vocabulary, pairs: Sequence[str], granularities: Sequence[str]
) -> Vocabulary:
    """Keep the named pairs and overlays; an empty sequence keeps them all.

    Raises:
        VocabularyError: a name that is not in the vocabulary, with the ones that are.
    """
    hint = "add it as YAML and pass --aq-conf"
    return Vocabulary(
        pairs=_pick("pair", pairs, vocabulary.pairs, f"{hint} (quant_pair/)"),
        granularities=_pick(
            "overlay", granularities, vocabulary.granularities, f"{hint} (quant_granularity/)"
        ),
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
