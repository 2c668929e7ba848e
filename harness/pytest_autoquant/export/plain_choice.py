"""A scheme against the plain choice: one format for every group, in at most the same bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from pytest_autoquant.allocation.scheme import uniform_allocation
from pytest_autoquant.allocation.scored_group import rounded_up
from pytest_autoquant.calibration.batches import CalibrationData
from pytest_autoquant.errors import AutoquantError
from pytest_autoquant.export.apply_scheme import GroupFormat
from pytest_autoquant.export.scheme_groups import Choice
from pytest_autoquant.manifests.records.scheme_manifest import (
    MeasuredDamage,
    UniformRecord,
    Verdict,
)
from pytest_autoquant.manifests.uncertainty import (
    CaptionSample,
    ScoreDifference,
    score_differences,
)
from pytest_autoquant.text import in_words

#: Relative slack on bits, which are rounded quotients.
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainChoices:
    """The uniform schemes of a choice's candidates.

    Attributes:
        bits: bits per weight that each candidate's uniform scheme stores.
        damages: of those that store at most the scheme's bits and are not the scheme.
        problems: why the others of them could not be measured.
        own: the candidate whose uniform scheme is the scheme, if there is one.
    """

    bits: Mapping[str, float]
    damages: Mapping[str, MeasuredDamage]
    problems: Mapping[str, str]
    own: str | None

    def compare(self, damage: MeasuredDamage, captions: CalibrationData) -> UniformRecord:
        """Compare a scheme's damage with that of the best uniform one.

        Args:
            captions: the held-out captions on which both were measured.
        """
        found = {**self.damages, **({} if self.own is None else {self.own: damage})}
        kl = {name: each.kl for name, each in found.items() if math.isfinite(each.kl)}
        record = UniformRecord(kl={name: kl.get(name) for name in (*found, *self.problems)})
        if not kl:
            return replace(record, not_compared=self._why_none(found))
        best = min(kl, key=lambda name: kl[name])
        record = replace(record, candidate=best, effective_bits=self.bits[best])
        if best == self.own:
            return replace(record, difference=0.0, verdict="same")
        return _compared(record, found[best], damage, captions)

    def _why_none(self, found: Mapping[str, MeasuredDamage]) -> str:
        reasons = [f"the KL divergence of uniform {name} is not finite" for name in found]
        reasons += [f"uniform {name}: {problem}" for name, problem in self.problems.items()]
        if reasons:
            return "; ".join(reasons)
        smallest = min(self.bits, key=lambda name: self.bits[name])
        return (
            "no uniform scheme of its candidates fits into the scheme's bits: the smallest, "
            f"{smallest}, stores {rounded_up(self.bits[smallest])} bits per weight"
        )


def plain_choices(
    choice: Choice, measure: Callable[[Sequence[GroupFormat]], MeasuredDamage]
) -> PlainChoices:
    """Measure the uniform schemes that store at most the bits of a choice.

    Groups that cannot take a candidate stay unquantized in its uniform scheme, as in any other.

    Args:
        measure: returns the damage of formats.
    """
    candidates = choice.case.scheme.candidates
    uniform = {name: uniform_allocation(choice.groups, i) for i, name in enumerate(candidates)}
    most = choice.allocation.effective_bits * (1 + _ROUNDING)
    own = next((n for n, u in uniform.items() if u.chosen == choice.allocation.chosen), None)
    damages, problems = {}, {}
    for name, allocation in uniform.items():
        if name == own or allocation.effective_bits > most:
            continue
        try:
            damages[name] = measure(replace(choice, allocation=allocation).formats)
        except Exception as error:  # what a scheme is compared with must not cost the scheme
            problems[name] = str(error) if isinstance(error, AutoquantError) else in_words(error)
    return PlainChoices(
        bits={name: each.effective_bits for name, each in uniform.items()},
        damages=damages,
        problems=problems,
        own=own,
    )


def _compared(
    record: UniformRecord,
    uniform: MeasuredDamage,
    damage: MeasuredDamage,
    captions: CalibrationData,
) -> UniformRecord:
    record = replace(record, difference=damage.kl - uniform.kl)
    if captions.num_captions < 2:
        return replace(record, not_compared="a single held-out caption gives no error bar")
    samples = [
        CaptionSample(
            captions=captions.scored_digests,
            predictions=each.caption_predictions,
            scores=[each.by_caption],
        )
        for each in (uniform, damage)
    ]
    (found,) = score_differences(*samples)
    return replace(
        record,
        standard_error=found.standard_error,
        noise=found.noise,
        verdict=_verdict(found),
    )


def _verdict(difference: ScoreDifference) -> Verdict:
    if not difference.is_beyond_noise:
        return "no difference"
    return "worse" if difference.value > 0 else "better"
