"""Where the copies of a fact in a scheme manifest disagree."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_autoquant.manifests.records.consistency.copies import (
    Copies,
    disagreeing,
    packed_problem,
)

if TYPE_CHECKING:
    from pytest_autoquant.manifests.records.scheme_manifest import SchemeManifest


def scheme_disagreements(found: SchemeManifest) -> Iterator[str]:
    """Yield every fact of a scheme manifest whose copies disagree, with both values."""
    yield from _candidate_problems(found)
    yield from disagreeing(_allocation_copies(found))
    yield from filter(None, [_caption_kl_problem(found)])
    yield from disagreeing(_interaction_copies(found))
    yield from disagreeing(_uniform_copies(found))
    yield from disagreeing(_search_copies(found))


def _candidate_problems(found: SchemeManifest) -> Iterator[str]:
    """Yield groups whose scores or format are not of the scheme's candidates."""
    candidates = sorted(found.scheme.candidates)
    for group in found.groups:
        if sorted(group.scores) != candidates:
            yield (
                f"group {group.name!r} has scores of {', '.join(sorted(group.scores))}, "
                f"scheme.candidates are {', '.join(candidates)}"
            )
        if group.format is not None and group.format not in candidates:
            yield (
                f"group {group.name!r} has format {group.format!r}, scheme.candidates are "
                f"{', '.join(candidates)}"
            )


def _allocation_copies(found: SchemeManifest) -> Iterator[Copies]:
    """The predicted score and the quantized fractions, which the decisions give."""
    quantized = [group for group in found.groups if group.format is not None]
    weights = sum(group.weights for group in found.groups)
    decided = found.allocation
    yield Copies(
        true=math.fsum(group.scores.get(group.format or "", math.nan) for group in quantized),
        at="the sum of the chosen scores in groups",
        copy=decided.score,
        copy_at="allocation.score",
    )
    yield Copies(
        true=len(quantized) / len(found.groups) if found.groups else 0.0,
        at="the fraction of groups that is quantized",
        copy=decided.fraction_of_groups,
        copy_at="allocation.fraction_of_groups",
    )
    yield Copies(
        true=sum(group.weights for group in quantized) / weights if weights else 0.0,
        at="the fraction of weights that is quantized",
        copy=decided.fraction_of_weights,
        copy_at="allocation.fraction_of_weights",
    )
    yield from _active_bits_copies(found)


def _active_bits_copies(found: SchemeManifest) -> Iterator[Copies]:
    """The bits per weight that a token is multiplied with, in a mixture of experts."""
    if all(group.active_weights is None for group in found.groups):
        return
    active = [g.weights if g.active_weights is None else g.active_weights for g in found.groups]
    bits = [math.nan if group.bits is None else group.bits for group in found.groups]
    total = math.fsum(w * b for w, b in zip(active, bits, strict=True))
    yield Copies(
        true=total / sum(active) if sum(active) else math.nan,
        at="what groups have per active weight",
        copy=found.allocation.active_bits,
        copy_at="allocation.active_bits",
    )


def _caption_kl_problem(found: SchemeManifest) -> str | None:
    """Return why the damage by caption is damaged, or is not the scheme's."""
    measured = found.measured
    if measured.caption_kl is None and not measured.caption_predictions:
        return None
    return packed_problem(
        measured.caption_kl or "",
        len(measured.caption_predictions),
        sum(measured.caption_predictions),
        measured.kl,
        at="measured.caption_kl",
        quotient_at="measured.kl",
    )


def _interaction_copies(found: SchemeManifest) -> Iterator[Copies]:
    """The sum of the groups' own damages, and the scheme's in proportion to it."""
    interaction = found.interaction
    if interaction is None or interaction.sum_kl is None:
        return
    yield Copies(
        true=math.fsum(group.kl for group in found.groups if group.kl is not None),
        at="the sum of kl in groups",
        copy=interaction.sum_kl,
        copy_at="interaction.sum_kl",
    )
    if interaction.ratio is not None:
        yield Copies(
            true=found.measured.kl / interaction.sum_kl if interaction.sum_kl else math.inf,
            at="measured.kl / interaction.sum_kl",
            copy=interaction.ratio,
            copy_at="interaction.ratio",
        )


def _uniform_copies(found: SchemeManifest) -> Iterator[Copies]:
    """The best uniform scheme, and how far the scheme's damage is from its damage."""
    uniform = found.uniform
    if uniform is None or uniform.candidate is None:
        return
    best = uniform.kl.get(uniform.candidate)
    yield Copies(
        true=min((kl for kl in uniform.kl.values() if kl is not None), default=None),
        at="the lowest of uniform.kl",
        copy=best,
        copy_at=f"that of {uniform.candidate}",
    )
    yield Copies(
        true=None if best is None else found.measured.kl - best,
        at="measured.kl minus that of uniform.candidate",
        copy=uniform.difference,
        copy_at="uniform.difference",
    )


def _search_copies(found: SchemeManifest) -> Iterator[Copies]:
    """The passing selection with the fewest bits is the scheme."""
    if found.search is not None:
        passing = [step.effective_bits for step in found.search.steps if step.passed]
        yield Copies(
            true=min(passing, default=math.nan),
            at="the fewest bits that pass in search.steps",
            copy=found.allocation.effective_bits,
            copy_at="allocation.effective_bits",
        )
