"""Manifests of one model as one set of layer groups, with all candidates that were measured."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pytest_autoquant.allocation.scored_group import Cost, ScoredGroup
from pytest_autoquant.errors import AnotherModelError, RecordError, UsageError
from pytest_autoquant.formats.granularity import DEFAULT
from pytest_autoquant.formats.quant_cfg import active_entry, recorded_entries
from pytest_autoquant.formats.quant_pair import INPUT_QUANTIZER, WEIGHT_QUANTIZER
from pytest_autoquant.formats.quantizer import QuantizerAttributes
from pytest_autoquant.manifests.fingerprint import differences, fingerprint_of
from pytest_autoquant.manifests.records.sensitivity_manifest import GroupSensitivity, Manifest
from pytest_autoquant.manifests.selection import scored_groups
from pytest_autoquant.recipes.decision import Format
from pytest_autoquant.regression.recorded_model import is_another

#: What makes scores of two cases incomparable.
_COMPARED = ("commit", "captions", "tokens", "method", "score_size", "harness")

#: A module's path. Its dots are the only characters that mean something to a pattern.
_MODULE = re.compile(r"\w+(\.\w+)*", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The layer groups of a model with every candidate that was measured.

    Attributes:
        model: the model's name; ``digest`` of its config and weights, None if it is not recorded.
        sources: where each candidate was read from, as errors call it.
        groups: scores and bits by candidate.
        modules: linears of each group; ``widths`` their input widths, empty if not recorded.
        divergences: by candidate, measured KL divergence of each group quantized alone, in nats per
            token; None for a candidate whose groups were not all measured so.
        cost: which weights a budget counts.
        budget: bits per weight that the first manifest records.
    """

    model: str
    digest: str | None
    formats: tuple[Format, ...]
    sources: tuple[str, ...]
    groups: tuple[ScoredGroup, ...]
    modules: tuple[tuple[str, ...], ...]
    widths: tuple[tuple[int, ...], ...]
    divergences: tuple[tuple[float, ...] | None, ...]
    method: str | None
    cost: Cost
    budget: float | None
    notes: tuple[str, ...] = ()


def measured_of(manifests: Mapping[str, Manifest]) -> Measured:
    """Join manifests of one model, by name of their file, into one set of candidates.

    An alias whose config another manifest has adds nothing and is left out.

    Raises:
        AnotherModelError: they are of different models.
        RecordError: a case failed, a group or a module of one is not that of the others.
        UsageError: their scores do not compare, or two have the same candidate.
    """
    manifests = _without_aliases(manifests)
    (first_name, first), *others = manifests.items()
    for name, manifest in manifests.items():
        _check_usable(name, manifest)
    for name, manifest in others:
        _check_comparable(first_name, first, name, manifest)
    _check_distinct(manifests)
    groups = list(first.layer_sensitivity.values())
    costs = {manifest.run_config.cost for manifest in manifests.values()}
    return Measured(
        model=first.model.name,
        digest=first.model.digest,
        formats=tuple(_format(manifest) for manifest in manifests.values()),
        sources=tuple(manifests),
        groups=_joined(list(manifests.values())),
        modules=tuple(group.module_names for group in groups),
        widths=tuple(
            tuple(first.layers[name].in_features for name in group.module_names) for group in groups
        ),
        divergences=tuple(_divergences(manifest) for manifest in manifests.values()),
        method=first.case.method,
        cost=costs.pop() if len(costs) == 1 else "stored",
        budget=first.run_config.effective_bits,
        notes=_notes(first),
    )


def check_modules(source: str, names: Sequence[str]) -> None:
    """Check that names are those of modules, and mean only themselves in a pattern.

    Raises:
        RecordError: a name has other characters than letters, digits, ``_`` and dots.
    """
    for name in names:
        if not _MODULE.fullmatch(name):
            raise RecordError(
                f"{source}: {name!r} is not the name of a module: it must be parts of letters, "
                "digits and _ with dots between them"
            )


def candidate_name(pair: str, granularity: str) -> str:
    """Return how a scheme calls a pair under a granularity."""
    return pair if granularity == DEFAULT.name else f"{pair}-{granularity}"


def _without_aliases(manifests: Mapping[str, Manifest]) -> dict[str, Manifest]:
    measured = {
        manifest.quantization.digest
        for manifest in manifests.values()
        if manifest.case.status != "alias"
    }
    return {
        name: manifest
        for name, manifest in manifests.items()
        if manifest.case.status != "alias" or manifest.quantization.digest not in measured
    }


def _check_usable(name: str, manifest: Manifest) -> None:
    if manifest.case.status == "failed":
        raise RecordError(
            f"{name}: the case failed ({'; '.join(manifest.case.problems) or 'no reason recorded'})"
            "; measure it again, or leave its manifest out"
        )
    if not manifest.layer_sensitivity:
        raise RecordError(f"{name}: has no layer group; measure a model with linears")
    check_modules(name, list(manifest.layers))


def _check_comparable(first_name: str, first: Manifest, name: str, manifest: Manifest) -> None:
    if is_another(first.model, manifest.model):
        raise AnotherModelError(
            f"{name}: is of another model than {first_name}: {manifest.model.name} with digest "
            f"{manifest.model.digest[:16]}, {first.model.name} with {first.model.digest[:16]}; "
            "give manifests of one model"
        )
    found = differences(fingerprint_of(first), fingerprint_of(manifest))
    differing = [each for each in found if each.field in _COMPARED]
    if differing:
        raise UsageError(
            f"{name}: its scores do not compare with those of {first_name}: "
            f"{'; '.join(map(str, differing))}; give manifests of one run"
        )
    names = [group.module_names for group in first.layer_sensitivity.values()]
    if [group.module_names for group in manifest.layer_sensitivity.values()] != names:
        raise RecordError(f"{name}: has other layer groups than {first_name}")


def _check_distinct(manifests: Mapping[str, Manifest]) -> None:
    sources: dict[str, str] = {}
    for name, manifest in manifests.items():
        candidate = _candidate(manifest)
        if candidate in sources:
            raise UsageError(f"{name}: is of {candidate}, as {sources[candidate]} is; give one")
        sources[candidate] = name


def _candidate(manifest: Manifest) -> str:
    return candidate_name(manifest.case.pair, manifest.case.granularity)


def _format(manifest: Manifest) -> Format:
    entries = recorded_entries(manifest.quantization.effective_quant_cfg)

    def attributes(pattern: str) -> QuantizerAttributes | None:
        index = active_entry(entries, pattern)
        return None if index is None else QuantizerAttributes.of(entries[index]["cfg"])

    return Format(
        name=_candidate(manifest),
        weight=attributes(WEIGHT_QUANTIZER),
        input=attributes(INPUT_QUANTIZER),
        algorithm=manifest.quantization.algorithm,
    )


def _joined(manifests: Sequence[Manifest]) -> tuple[ScoredGroup, ...]:
    """Return each group with the candidates of all manifests."""
    columns = [_candidates(list(each.layer_sensitivity.values())) for each in manifests]
    return tuple(
        replace(
            row[0],
            scores=tuple(group.scores[0] for group in row),
            bits=tuple(group.bits[0] for group in row),
            left_out=frozenset(i for i, group in enumerate(row) if group.left_out),
        )
        for row in zip(*columns, strict=True)
    )


def _candidates(groups: Sequence[GroupSensitivity]) -> list[ScoredGroup]:
    """Return the groups with one candidate, which those cannot take whose score is not finite."""
    return [
        replace(scored, left_out=frozenset({0})) if group.scores[0] is None else scored
        for group, scored in zip(groups, scored_groups(groups), strict=True)
    ]


def _divergences(manifest: Manifest) -> tuple[float, ...] | None:
    groups = manifest.layer_sensitivity
    if manifest.case.method == "kl_div":
        found = [group.scores[0] for group in groups.values()]
        known = tuple(kl for kl in found if kl is not None)
        return known if len(known) == len(found) else None
    check = manifest.score_check
    return None if check is None else tuple(check.groups[name].kl for name in groups)


def _notes(manifest: Manifest) -> tuple[str, ...]:
    if manifest.model.weights == "random":
        return ("the model's weights are random: the decision says nothing of trained ones",)
    return ()
