"""The record of the damage that a case does with every layer group quantized."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_autoquant.manifests.records.json_record import STRICT


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeModelKL:
    """The KL divergence of the model with every layer group quantized from the unquantized one.

    The groups' scores are those of each group alone, so their sum does not see that errors of
    groups reinforce or cancel each other; this is measured.

    Attributes:
        captions: number of captions it was measured on, the first ones of
            ``DatasetRecord.scored_captions``.
        tokens: next-token predictions of these captions.
        kl: in nats per token.
        standard_error: of ``kl``, over captions; None for a single caption.
        interaction_ratio: by ``kl_div`` this divergence / the sum of the groups' divergences on the
            same captions, as in ``InteractionRecord``. 1 if damages add up; above 1 they reinforce
            each other, below 1 they cancel in part. None by the other methods, and where the sum is
            zero.
        score_per_kl: by ``gradient`` and ``fisher`` the sum of the groups' scores on the same
            captions, divided by ``kl``. Its unit is not 1: it compares configurations, and no value
            of it says that damages add up. None by ``kl_div``, and where ``kl`` is zero.
        ratio_standard_error: of whichever ratio there is, over captions.
        caption_kl: the divergence by caption in nats, not divided by tokens; see ``packed_scores``.
        seconds: what measuring took, for all configurations that were measured together.
    """

    __pydantic_config__ = STRICT
    captions: int
    tokens: int
    kl: float
    standard_error: float | None
    interaction_ratio: float | None = None
    score_per_kl: float | None = None
    ratio_standard_error: float | None = None
    caption_kl: str
    seconds: float
