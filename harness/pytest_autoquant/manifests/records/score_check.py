"""The record of a check: gradient scores beside the measured KL divergence of the same groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pytest_autoquant.manifests.ranks import TOP, places, spearman
from pytest_autoquant.manifests.records.json_record import STRICT


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupDivergence:
    """The measured KL divergence of one group that is quantized alone.

    Attributes:
        kl: in nats per scored token.
        standard_error: over captions; None for a single caption.
    """

    __pydantic_config__ = STRICT
    kl: float
    standard_error: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreCheck:
    """Whether a case's gradient scores rank the groups as the measured KL divergence does.

    Attributes:
        captions: number of captions that the divergence was measured on, the first ones of
            ``DatasetRecord.scored_captions``; the score is that of all of them.
        tokens: next-token predictions of these captions.
        spearman: rank correlation of score and divergence over the groups.
        top_ten: how many of the ten groups of the largest divergence are among the ten of the
            highest score; with fewer groups, of all of them.
        groups: by name, as in ``layer_sensitivity``.
        seconds: what measuring took, for all configurations that were measured together.
    """

    __pydantic_config__ = STRICT
    captions: int
    tokens: int
    spearman: float
    top_ten: int
    groups: Mapping[str, GroupDivergence] = field(default_factory=dict)
    seconds: float


def rank_agreement(scores: Mapping[str, float], kl: Mapping[str, float]) -> tuple[float, int]:
    """Return ``spearman`` and ``top_ten`` of the scores and divergences of the same groups."""
    by_score, by_kl = places(scores), places(kl)
    common = sum(by_score[name] <= TOP and by_kl[name] <= TOP for name in scores)
    return spearman([(scores[name], kl[name]) for name in scores]), common
