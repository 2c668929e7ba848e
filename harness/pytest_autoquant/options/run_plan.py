"""What a run is asked for: vocabulary, cases and schemes. Nothing here measures or writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pytest_autoquant.calibration.captions import CaptionSet, load_captions, load_held_out
from pytest_autoquant.calibration.sizes import SIZES
from pytest_autoquant.errors import UsageError
from pytest_autoquant.formats.effective_config import resolve
from pytest_autoquant.grid.assignment import Assignment
from pytest_autoquant.grid.case import (
    ALL_SCHEMES,
    Case,
    Combination,
    SchemeCase,
    cases,
    combinations,
    scheme_cases,
)
from pytest_autoquant.grid.sharding import deal_cases
from pytest_autoquant.grid.vocabulary import (
    Vocabulary,
    load_vocabulary,
    select_sizes,
    select_vocabulary,
)
from pytest_autoquant.models.registry import ModelSource, find_model
from pytest_autoquant.options.settings import Settings
from pytest_autoquant.options.table import BY_NAME
from pytest_autoquant.text import digits_apart


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """Checked settings and everything that they select.

    Attributes:
        root: report folder.
        known: every pair, granularity and scheme, also those that no option selects.
        sizes: selected calibration sizes, smallest first.
        held_out: captions that measure a scheme's damage; None if no scheme is asked for.
    """

    settings: Settings
    root: Path
    known: Vocabulary
    vocabulary: Vocabulary
    sizes: tuple[str, ...]
    source: ModelSource
    schemes: tuple[SchemeCase, ...]
    held_out: CaptionSet | None

    @classmethod
    def of(cls, settings: Settings, rootdir: Path) -> RunPlan:
        """Resolve every name in the settings and read the captions once.

        Raises:
            AutoquantError: a name, a YAML file, a model folder or captions that cannot be used.
        """
        known = load_vocabulary(settings.conf)
        sizes = select_sizes(settings.sizes)
        source = find_model(
            settings.model,
            random_weights=settings.random_seed is not None,
            called=settings.model_name,
            revision=settings.revision,
        )
        if settings.captions is not None:
            load_captions(settings.captions, sizes[0])
        return cls(
            settings=settings,
            root=_report_root(settings, rootdir),
            known=known,
            vocabulary=select_vocabulary(known, settings.pairs, settings.granularities),
            sizes=sizes,
            source=source,
            schemes=scheme_cases(known, settings.schemes, model=source.name, size=sizes[-1]),
            held_out=load_held_out(settings.held_out) if settings.schemes else None,
        )

    @cached_property
    def combinations(self) -> tuple[Combination, ...]:
        """Every selected pair under every selected granularity."""
        return tuple(combinations(self.vocabulary))

    @cached_property
    def cases(self) -> tuple[Case, ...]:
        """Every sensitivity case of the selected grid."""
        method = self.settings.method
        return tuple(cases(self.vocabulary, self.sizes, model=self.source.name, method=method))

    @cached_property
    def cases_by_id(self) -> Mapping[str, Case]:
        """The cases of the selected grid by ``case_id``."""
        return {case.case_id: case for case in self.cases}

    def case_named(self, name: str) -> Case:
        """Return a case by its test id, such as ``wint4_aint8-w_group64-small``.

        Any pair, granularity and size may be named, also one that no option selects.

        Raises:
            UsageError: an unknown pair, granularity or size.
        """
        pair, _, rest = name.partition("-")
        granularity, _, size = rest.partition("-")
        if not size:
            raise UsageError(
                f"case {name!r} is unknown; give PAIR-GRANULARITY-SIZE, such as "
                "wint4_aint8-w_group64-small"
            )
        vocabulary = select_vocabulary(self.known, [pair], [granularity])
        (combination,) = combinations(vocabulary)
        (size,) = select_sizes([size])
        return Case(
            model=self.source.name, combination=combination, size=size, method=self.settings.method
        )

    def combination_named(self, name: str) -> Combination:
        """Return a pair under a granularity by its test id, such as ``wint4_aint8-w_group64``.

        Raises:
            UsageError: an unknown pair or granularity.
        """
        return self.case_named(f"{name}-{next(iter(SIZES))}").combination

    def scheme_named(self, name: str) -> SchemeCase:
        """Return a scheme by its name.

        Raises:
            UsageError: an unknown scheme.
        """
        size = self.sizes[-1]
        (case,) = scheme_cases(self.known, [name], model=self.source.name, size=size)
        return case

    def assign(self, selected: Sequence[Case], *, workers: int) -> Assignment:
        """Keep this shard's cases and deal them to workers.

        Args:
            selected: the cases that were collected and not deselected, in order.
            workers: number of workers among which cases are dealt by part.
        """
        unique = tuple({case.case_id: case for case in selected}.values())
        return Assignment(selected=unique, parts=self.parts(self._shard_of(unique), workers))

    def parts(self, selected: Sequence[Case], count: int) -> dict[str, int]:
        """Deal cases into parts of equal work, by ``case_id``."""
        return deal_cases(selected, count, self.settings.score_size)

    def takes_combination(self, combination: Combination) -> bool:
        """Whether a structure case belongs to this shard."""
        return self._takes(self.combinations.index(combination))

    def takes_scheme(self, case: SchemeCase) -> bool:
        """Whether a scheme is asked for and belongs to this shard."""
        return bool(self.settings.schemes) and self._takes(self.schemes.index(case))

    def is_named(self, case: SchemeCase) -> bool:
        """Whether a scheme is asked for by its name, not by ``all``."""
        named = self.settings.schemes
        return case.scheme.name in named and ALL_SCHEMES not in named

    def check_budget(self, selected: Sequence[Case]) -> None:
        """Refuse a bit budget, other than the default, that no selected case can reach.

        Bits are those of the composed config; with a pair on a ModelOpt preset of its own, whose
        bits are known only to ModelOpt, the measuring process checks before the first case.

        Raises:
            UsageError: with the smallest budget that a selected case can reach.
        """
        known = [case for case in selected if not case.combination.pair.from_preset]
        least = min((_composed_bits(case.combination) for case in known), default=0.0)
        if len(known) == len(selected):
            refuse_small_budget(self.settings.effective_bits, least)

    def _shard_of(self, selected: tuple[Case, ...]) -> tuple[Case, ...]:
        shard = self.settings.shard
        if shard is None:
            return selected
        parts = self.parts(selected, shard.count)
        return tuple(case for case in selected if parts[case.case_id] == shard.index - 1)

    def _takes(self, index: int) -> bool:
        shard = self.settings.shard
        return shard is None or index % shard.count == shard.index - 1


def refuse_small_budget(budget: float, least: float) -> None:
    """Refuse a bit budget, other than the default, below the least bits of the selected cases.

    Raises:
        UsageError: with the smallest budget that a selected case can reach.
    """
    if budget == BY_NAME["effective_bits"].default or least <= budget:
        return
    digits = digits_apart(budget, least, 6, "g")
    raise UsageError(
        f"--aq-effective-bits {budget:.{digits}g}: too small for every selected case; the least is "
        f"{least:.{digits}g} bits per weight: give at least that, or select a pair with fewer bits"
    )


def _composed_bits(combination: Combination) -> float:
    return resolve(combination.pair, combination.granularity).effective_bits


def _report_root(settings: Settings, rootdir: Path) -> Path:
    root = settings.report_root(rootdir)
    baseline = settings.baseline
    if baseline is None or settings.update_baseline:
        return root
    if baseline.resolve() == root.resolve():
        raise UsageError(
            f"--aq-baseline {baseline}: this run writes its reports there, so every case would be "
            "compared with itself; give another folder with --aq-report-dir"
        )
    return root
