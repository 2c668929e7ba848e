"""Where the copies of a fact in a sensitivity manifest disagree."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING

from pytest_autoquant.formats.effective_config import UNQUANTIZED_BITS
from pytest_autoquant.manifests.records.consistency.copies import (
    Copies,
    disagreeing,
    packed_problem,
)
from pytest_autoquant.manifests.records.score_check import rank_agreement

if TYPE_CHECKING:
    from pytest_autoquant.manifests.records.sensitivity_manifest import Manifest


def manifest_disagreements(manifest: Manifest) -> Iterator[str]:
    """Yield every fact of a sensitivity manifest whose copies disagree, with both values."""
    groups, ranking = manifest.layer_sensitivity, manifest.sensitivity_ranking
    yield from ranking_disagreements(
        {name: group.importance for name, group in groups.items()},
        [(ranked.name, ranked.importance) for ranked in ranking],
    )
    yield from disagreeing(_score_copies(manifest))
    yield from disagreeing(_rank_copies(manifest))
    yield from _ranking_problems(manifest)
    yield from disagreeing(_layer_copies(manifest))
    yield from disagreeing(_total_copies(manifest))
    yield from disagreeing(_bits_copies(manifest))
    yield from disagreeing(_active_bits_copies(manifest))
    yield from disagreeing(_option_copies(manifest))
    yield from disagreeing(_caption_copies(manifest))
    yield from filter(None, _caption_score_problems(manifest))
    yield from _score_check_problems(manifest)
    yield from filter(None, _whole_model_problems(manifest))


def ranking_disagreements(
    scores: Mapping[str, float | None], ranked: Iterable[tuple[str, float | None]]
) -> Iterator[str]:
    """Yield where a ranking gives a group another score; groups of one list only are not compared.

    Args:
        scores: by group, as ``layer_sensitivity`` has them.
        ranked: group and score as ``sensitivity_ranking`` has them.
    """
    return disagreeing(
        Copies(
            true=scores[name],
            at="importance in layer_sensitivity",
            copy=score,
            copy_at="sensitivity_ranking",
            of=f"group {name!r}",
        )
        for name, score in ranked
        if name in scores
    )


def _score_copies(manifest: Manifest) -> Iterator[Copies]:
    """A group's score: ``scores`` by format, and ``importance``."""
    for name, group in manifest.layer_sensitivity.items():
        yield Copies(
            true=group.importance,
            at="importance",
            copy=group.scores[0] if group.scores else None,
            copy_at="the first of its scores",
            of=f"group {name!r} in layer_sensitivity",
        )


def _rank_copies(manifest: Manifest) -> Iterator[Copies]:
    """A group's rank: recorded, and its place in the ranking."""
    for place, ranked in enumerate(manifest.sensitivity_ranking, start=1):
        yield Copies(
            true=manifest.layer_sensitivity[ranked.name].rank,
            at="rank in layer_sensitivity",
            copy=place,
            copy_at="its place in sensitivity_ranking",
            of=f"group {ranked.name!r}",
        )


def _ranking_problems(manifest: Manifest) -> Iterator[str]:
    """Yield groups that the ranking lacks or has twice, and two of them in the wrong order."""
    names = [ranked.name for ranked in manifest.sensitivity_ranking]
    places = Counter(names)
    for name in manifest.layer_sensitivity:
        if places[name] != 1:
            yield (
                f"group {name!r} is once in layer_sensitivity and {places[name]} times in "
                "sensitivity_ranking"
            )
    for above, below in pairwise(names):
        first, second = (manifest.layer_sensitivity[name].importance for name in (above, below))
        if first is not None and (second is None or second > first):
            yield (
                f"sensitivity_ranking has group {above!r} with score {first!r} before {below!r} "
                f"with {second!r}; the most sensitive comes first"
            )


def _layer_copies(manifest: Manifest) -> Iterator[Copies]:
    """A layer's group, and the number of quantized layers."""
    yield Copies(
        true=sum(layer.quantized for layer in manifest.layers.values()),
        at="the number of quantized layers in layers",
        copy=manifest.num_quantized_layers,
        copy_at="num_quantized_layers",
    )
    owners = {
        member: name
        for name, group in manifest.layer_sensitivity.items()
        for member in group.module_names
    }
    for name, layer in manifest.layers.items():
        yield Copies(
            true=owners.get(name, ""),
            at="its group in layer_sensitivity",
            copy=layer.group,
            copy_at="layers",
            of=f"layer {name!r}",
        )


def _total_copies(manifest: Manifest) -> Iterator[Copies]:
    """The scores of all groups together, and of those that the selection quantizes."""
    groups, layers = manifest.layer_sensitivity.values(), manifest.layers
    selected = [g for g in groups if any(layers[name].selected for name in g.module_names)]
    state = manifest.autoquant_state
    yield Copies(
        true=_sum(group.importance for group in groups),
        at="the sum of all scores in layer_sensitivity",
        copy=state.total_score,
        copy_at="autoquant_state.total_score",
    )
    yield Copies(
        true=_sum(group.importance for group in selected),
        at="the sum of the selected groups' scores",
        copy=state.score,
        copy_at="autoquant_state.score",
    )


def _bits_copies(manifest: Manifest) -> Iterator[Copies]:
    """The bits per weight of all layers, and under the selection; earlier manifests have none."""
    weights, stored, selected = 0, 0, 0
    for layer in manifest.layers.values():
        if layer.stored_bits is None:
            return
        unquantized = layer.out_features * layer.in_features * int(UNQUANTIZED_BITS)
        weights += layer.out_features * layer.in_features
        stored += layer.stored_bits
        selected += layer.stored_bits if layer.selected else unquantized
    if not weights:
        return
    yield Copies(
        true=_per_weight(stored, weights),
        at="what all layers store per weight",
        copy=manifest.quantization.effective_bits,
        copy_at="quantization.effective_bits",
    )
    yield Copies(
        true=_per_weight(selected, weights),
        at="what the layers store per weight under the selection",
        copy=manifest.autoquant_state.effective_bits,
        copy_at="autoquant_state.effective_bits",
    )


def _active_bits_copies(manifest: Manifest) -> Iterator[Copies]:
    """The bits per weight that a token is multiplied with, in a mixture of experts."""
    groups = manifest.layer_sensitivity.values()
    if all(group.active_weights is None for group in groups):
        return
    weights, stored, selected = 0.0, 0.0, 0.0
    for group in groups:
        active = group.costs[1] if group.active_weights is None else group.active_weights
        bits = UNQUANTIZED_BITS * group.costs[0] / group.costs[1]
        is_selected = any(manifest.layers[name].selected for name in group.module_names)
        weights += active
        stored += active * bits
        selected += active * (bits if is_selected else UNQUANTIZED_BITS)
    for true, copy, copy_at in (
        (stored / weights, manifest.quantization.active_bits, "quantization.active_bits"),
        (selected / weights, manifest.autoquant_state.active_bits, "autoquant_state.active_bits"),
    ):
        yield Copies(true=true, at="what groups have per active weight", copy=copy, copy_at=copy_at)


def _per_weight(bits: int, weights: int) -> float:
    """Return the quotient; infinity, which no copy holds, where it is too large for a float."""
    try:
        return bits / weights
    except OverflowError:
        return math.inf


def _option_copies(manifest: Manifest) -> Iterator[Copies]:
    """Options and names that the practice's keys repeat."""
    run, scheme, case = manifest.run_config, manifest.scheme, manifest.case
    quantization = manifest.quantization
    for true, at, copy, copy_at in (
        (
            run.effective_bits,
            "run_config.effective_bits",
            scheme.auto_quantize_bits,
            "scheme.auto_quantize_bits",
        ),
        (
            run.effective_bits,
            "run_config.effective_bits",
            manifest.autoquant_state.constraints.effective_bits,
            "autoquant_state.constraints.effective_bits",
        ),
        (
            run.score_size,
            "run_config.score_size",
            scheme.auto_quantize_score_size,
            "scheme.auto_quantize_score_size",
        ),
        (case.method, "case.method", scheme.auto_quantize_method, "scheme.auto_quantize_method"),
        (case.size, "case.size", manifest.dataset.size, "dataset.size"),
        (
            case.granularity,
            "case.granularity",
            quantization.quant_granularity.name,
            "quantization.quant_granularity.name",
        ),
        (
            (quantization.base_format_name,),
            "quantization.base_format_name",
            scheme.quant_formats,
            "scheme.quant_formats",
        ),
        (manifest.model.dtype, "model.dtype", run.dtype, "run_config.dtype"),
        (manifest.model.weights, "model.weights", run.weights, "run_config.weights"),
        (
            manifest.dataset.batch_size,
            "dataset.batch_size",
            run.batch_size,
            "run_config.batch_size",
        ),
    ):
        yield Copies(true=true, at=at, copy=copy, copy_at=copy_at)


def _caption_copies(manifest: Manifest) -> Iterator[Copies]:
    """Numbers of captions and tokens, which the lengths give."""
    data = manifest.dataset
    if data.scored_captions:
        yield Copies(
            true=len(data.scored_captions),
            at="the number of captions in dataset.scored_captions",
            copy=data.num_score_samples,
            copy_at="dataset.num_score_samples",
        )
    if data.scored_predictions:
        yield Copies(
            true=len(data.scored_predictions),
            at="the number of captions in dataset.scored_predictions",
            copy=len(data.scored_captions),
            copy_at="dataset.scored_captions",
        )
        yield Copies(
            true=sum(data.scored_predictions),
            at="the sum of dataset.scored_predictions",
            copy=data.num_scored_tokens,
            copy_at="dataset.num_scored_tokens",
        )
    yield Copies(
        true=sum(data.token_lengths.values()),
        at="the number of captions in dataset.token_lengths",
        copy=data.num_calib_samples,
        copy_at="dataset.num_calib_samples",
    )
    yield Copies(
        true=sum(length * count for length, count in data.token_lengths.items()),
        at="the number of tokens in dataset.token_lengths",
        copy=data.num_tokens,
        copy_at="dataset.num_tokens",
    )


def _score_check_problems(manifest: Manifest) -> Iterator[str]:
    """Yield where a check of the scores is not of these groups, captions or ranks."""
    check, data = manifest.score_check, manifest.dataset
    if check is None:
        return
    scores = {name: group.importance or 0.0 for name, group in manifest.layer_sensitivity.items()}
    if set(check.groups) != set(scores):
        yield "score_check.groups must be the groups of layer_sensitivity"
        return
    spearman, top_ten = rank_agreement(scores, {n: g.kl for n, g in check.groups.items()})
    yield from disagreeing(
        Copies(true=true, at=f"score_check.{name} by its groups", copy=copy, copy_at="the record")
        for name, true, copy in (
            ("tokens", sum(data.scored_predictions[: check.captions]), check.tokens),
            ("spearman", spearman, check.spearman),
            ("top_ten", top_ten, check.top_ten),
        )
    )


def _caption_score_problems(manifest: Manifest) -> Iterator[str | None]:
    """Yield groups whose scores by caption are damaged, or are not those of the group."""
    predictions = manifest.dataset.scored_predictions
    for name, group in manifest.layer_sensitivity.items():
        if group.caption_scores is not None:
            yield packed_problem(
                group.caption_scores,
                len(predictions),
                sum(predictions),
                group.importance or 0.0,
                at=f"group {name!r}: caption_scores",
                quotient_at="importance",
            )


def _whole_model_problems(manifest: Manifest) -> Iterator[str | None]:
    """Yield where the divergence of the whole model is not that of its captions and scores."""
    whole, predictions = manifest.whole_model, manifest.dataset.scored_predictions
    if whole is None:
        return
    tokens = sum(predictions[: whole.captions])
    yield packed_problem(
        whole.caption_kl,
        whole.captions,
        tokens,
        whole.kl,
        at="whole_model: caption_kl",
        quotient_at="kl",
    )
    if tokens != whole.tokens:
        yield "whole_model: tokens must be the predictions of its captions"


def _sum(scores: Iterable[float | None]) -> float | None:
    """Return the sum; None if a score is not finite or the sum is not."""
    known = list(scores)
    finite = [score for score in known if score is not None]
    total = float(sum(finite))
    return total if len(finite) == len(known) and math.isfinite(total) else None
