"""One case's sensitivities as reports and comparisons see them.

A manifest of this harness and one from before it both come to this; None stands where an old one
does not say.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from pytest_autoquant.manifests.fingerprint import Fingerprint, fingerprint_of
from pytest_autoquant.manifests.sensitivity_manifest import (
    GROUP_SUFFIX,
    CaseStatus,
    LayerRecord,
    Manifest,
)

UNKNOWN = "unknown"

_LAYER_INDEX = re.compile(r"(?:^|\.)(\d+)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One layer group.

    Attributes:
        name: its first linear; the group stands for all of ``modules``, which is empty where an old
            manifest does not say.
        score: per scored token; None where it is not finite.
        rank: 1 is the most sensitive.
        weights: stored weights, counted.
        selected: whether the bit budget keeps the group quantized.
    """

    name: str
    score: float | None
    rank: int
    modules: tuple[str, ...]
    weights: int | None
    selected: bool | None

    @property
    def layer(self) -> int | None:
        """Index of the decoder layer; None outside one, as lm_head is."""
        return _place(self.name, self.modules)[0]

    @property
    def projection(self) -> str:
        """What the group is within its layer, e.g. ``self_attn.{q,k,v}_proj``."""
        return _place(self.name, self.modules)[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionResult:
    """What the bit budget chose: bits per weight and scores as in the manifest."""

    budget: float | None = None
    bits: float | None = None
    minimum_bits: float | None = None
    score: float | None = None
    is_satisfied: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """One case.

    Attributes:
        model: names folders and cases.
        manifest: its file below the report root, with ``/``.
        effective_bits: stored per weight under the case's format, block scales included.
        groups: most sensitive first; ``module_order`` names them as they follow in the model.
        total_score: of quantizing every group, per scored token; None if it is not finite.
        origin: where the numbers come from, label by label.
        fingerprint: None of an old manifest, which lacks the digests.
    """

    case_id: str
    model: str
    pair: str
    granularity: str
    size: str
    method: str
    status: CaseStatus
    alias_of: str | None
    experimental: bool
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    format_name: str
    effective_bits: float | None
    groups: tuple[Group, ...]
    module_order: tuple[str, ...]
    total_score: float | None
    selection: SelectionResult
    manifest: str
    quantizers: Mapping[str, str] = field(default_factory=dict)
    origin: Mapping[str, str] = field(default_factory=dict)
    fingerprint: Fingerprint | None = None

    @property
    def is_old(self) -> bool:
        """Whether the manifest is from before the harness."""
        return self.fingerprint is None

    @property
    def unit(self) -> str:
        """What the scores are counted per."""
        return "in an unknown unit" if self.is_old else "per token"

    @property
    def top_group(self) -> str:
        """The most sensitive group; empty if there is none."""
        return self.groups[0].name if self.groups else ""

    @property
    def in_module_order(self) -> tuple[Group, ...]:
        """The groups as they follow in the model."""
        by_name = {group.name: group for group in self.groups}
        return tuple(by_name[name] for name in self.module_order)

    @property
    def selected_groups(self) -> int:
        """How many groups the bit budget keeps quantized."""
        return sum(group.selected is True for group in self.groups)

    @property
    def shares(self) -> dict[str, float]:
        """Each group's part of the total score; none where there is no total."""
        if not self.total_score:
            return {}
        return {group.name: (group.score or 0.0) / self.total_score for group in self.groups}


def case_result_of(manifest: Manifest, path: Path | None = None) -> CaseResult:
    """Return what reports show of a manifest; ``path`` is its file below the report root."""
    case, state = manifest.case, manifest.autoquant_state
    groups = tuple(
        Group(
            name=ranked.name.removesuffix(GROUP_SUFFIX),
            score=ranked.importance,
            rank=manifest.layer_sensitivity[ranked.name].rank,
            modules=manifest.layer_sensitivity[ranked.name].module_names,
            weights=sum(layer.out_features * layer.in_features for layer in members),
            selected=all(layer.selected for layer in members),
        )
        for ranked in manifest.sensitivity_ranking
        for members in [_members(manifest, ranked.name)]
    )
    return CaseResult(
        case_id=case.case_id,
        model=manifest.model.name,
        pair=case.pair,
        granularity=case.granularity,
        size=case.size,
        method=case.method,
        status=case.status,
        alias_of=case.alias_of,
        experimental=case.experimental,
        problems=case.problems,
        notes=case.notes,
        format_name=manifest.quantization.base_format_name,
        effective_bits=manifest.quantization.effective_bits,
        groups=groups,
        module_order=tuple(name.removesuffix(GROUP_SUFFIX) for name in manifest.layer_sensitivity),
        total_score=state.total_score,
        selection=SelectionResult(
            budget=state.constraints.effective_bits,
            bits=state.effective_bits,
            minimum_bits=state.minimum_effective_bits,
            score=state.score,
            is_satisfied=state.is_satisfied,
        ),
        manifest=(path or manifest.path).as_posix(),
        quantizers=manifest.quantization.effective_quantizer_summary,
        origin=_origin(manifest),
        fingerprint=fingerprint_of(manifest),
    )


def finite(value: float | None) -> float | None:
    """Return ``value`` where it is a finite number, else None."""
    return value if value is not None and math.isfinite(value) else None


def _members(manifest: Manifest, group: str) -> list[LayerRecord]:
    return [manifest.layers[name] for name in manifest.layer_sensitivity[group].module_names]


def _origin(manifest: Manifest) -> dict[str, str]:
    model, data, env, run = (
        manifest.model,
        manifest.dataset,
        manifest.environment,
        manifest.run_config,
    )
    return {
        "model": f"{model.id} ({model.weights} weights)",
        "model digest": model.digest,
        "architecture": model.architecture,
        "compute dtype": model.dtype,
        "captions": (
            f"{data.name}, {data.size}: {data.num_calib_samples} calibrated, "
            f"{data.num_score_samples} scored ({data.num_scored_tokens} tokens)"
        ),
        "captions digest": f"{data.size}: {data.sha256}",
        "method": manifest.case.method,
        "engine": run.engine,
        "bit budget": f"{run.effective_bits:g} bits per weight",
        "device": f"{env.device_name} ({env.device})",
        "platform": env.platform,
        "CUDA": env.cuda or "none",
        "harness": env.harness,
        "ModelOpt": env.modelopt,
        "torch": env.torch,
        "transformers": env.transformers,
        "Python": env.python,
    }


@lru_cache(maxsize=4096)
def _place(name: str, modules: tuple[str, ...]) -> tuple[int | None, str]:
    found = _LAYER_INDEX.search(name)
    members = [_within_layer(module) for module in modules or (name,)]
    return None if found is None else int(found[1]), _joined(members)


def _joined(members: list[str]) -> str:
    """Join siblings: ``a.q_proj`` and ``a.k_proj`` are ``a.{q,k}_proj``; else the first stands."""
    parents = {member.rpartition(".")[0] for member in members}
    if len(members) == 1 or len(parents) > 1:
        return members[0]
    (parent,) = parents
    names = [member.rpartition(".")[2] for member in members]
    ends = {name.rpartition("_")[2] for name in names}
    starts = [name.rpartition("_")[0] for name in names]
    joined = f"{{{','.join(names)}}}"
    if len(ends) == 1 and all(starts):
        joined = f"{{{','.join(starts)}}}_{ends.pop()}"
    return f"{parent}.{joined}" if parent else joined


def _within_layer(name: str) -> str:
    """Cut off everything up to the first index: ``model.layers.3.mlp.up_proj`` -> ``mlp.up_proj``.

    The whole name where there is none.
    """
    found = _LAYER_INDEX.search(name)
    return name if found is None else name[found.end() :]
