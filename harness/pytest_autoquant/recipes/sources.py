"""Read what recipes are made from: scheme manifests, and sensitivity manifests of any age."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pytest_autoquant.allocation.scheme import Scheme
from pytest_autoquant.allocation.scored_group import ScoredGroup
from pytest_autoquant.errors import RecordError, UsageError
from pytest_autoquant.files import read_bytes
from pytest_autoquant.formats.effective_config import resolve
from pytest_autoquant.formats.granularity import DEFAULT
from pytest_autoquant.grid.vocabulary import Vocabulary
from pytest_autoquant.manifests.case_result import UNKNOWN, CaseResult
from pytest_autoquant.manifests.layout import ANY_MANIFEST_SUFFIX, SCHEME_MANIFEST, find_manifests
from pytest_autoquant.manifests.pre_harness import read_any
from pytest_autoquant.manifests.records.scheme_manifest import SchemeManifest, load_scheme
from pytest_autoquant.recipes.choose import Budget, choose
from pytest_autoquant.recipes.decision import DecidedGroup, Decision, Format
from pytest_autoquant.recipes.measured import Measured, candidate_name, check_modules, measured_of


def read_decision(paths: Sequence[Path], budget: Budget | None, vocabulary: Vocabulary) -> Decision:
    """Return the decision of a scheme manifest, or the best one from sensitivity manifests.

    Args:
        paths: one scheme manifest; or sensitivity manifests of one model, or folders of them.
        vocabulary: pairs and granularities of the candidates of a scheme.

    Raises:
        AutoquantError: a file cannot be read, or see ``measured_of`` and ``choose``.
    """
    files = _files(paths)
    if any(path.name == SCHEME_MANIFEST for path in files):
        return _of_scheme(files, budget, vocabulary)
    return choose(_measured(files, vocabulary), budget)


def read_measured(paths: Sequence[Path], vocabulary: Vocabulary) -> Measured:
    """Return the layer groups of sensitivity manifests; see ``read_decision``."""
    files = _files(paths)
    schemes = [path for path in files if path.name == SCHEME_MANIFEST]
    if schemes:
        raise UsageError(
            f"{schemes[0]}: is a scheme manifest, which holds one decision; give the sensitivity "
            "manifests of its candidates"
        )
    return _measured(files, vocabulary)


def _files(paths: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        found = _in_folder(path) if path.is_dir() else [path]
        if not found:
            raise UsageError(
                f"{path}: holds no file *{ANY_MANIFEST_SUFFIX}; give manifests, or a folder of them"
            )
        files += found
    return list(dict.fromkeys(files))


def _in_folder(folder: Path) -> list[Path]:
    """Return a folder's scheme manifest, else every sensitivity manifest under it."""
    scheme = folder / SCHEME_MANIFEST
    return [scheme] if scheme.is_file() else find_manifests(folder)


def _measured(files: Sequence[Path], vocabulary: Vocabulary) -> Measured:
    manifests = {}
    for path in files:
        found = read_any(path, path.parent)
        if isinstance(found, CaseResult):
            return _from_before(files, found, vocabulary)
        manifests[str(path)] = found
    return measured_of(manifests)


def _of_scheme(files: Sequence[Path], budget: Budget | None, vocabulary: Vocabulary) -> Decision:
    if len(files) > 1 or budget is not None:
        raise UsageError(
            "a scheme manifest holds one decision: give it alone and without a budget, or give the "
            "sensitivity manifests of its candidates"
        )
    source = str(files[0])
    manifest = load_scheme(read_bytes(files[0]), source=source)
    formats = {name: _format(source, name, vocabulary) for name in _chosen(manifest)}
    check_modules(source, [name for group in manifest.groups for name in group.modules])
    return Decision(
        model=manifest.model.name,
        digest=manifest.model.digest,
        candidates=tuple(formats.values()),
        rule=Scheme(
            name=manifest.scheme.name,
            candidates=manifest.scheme.candidates,
            measure=manifest.scheme.measure,
            amount=manifest.scheme.amount,
        ),
        method=manifest.scheme.method,
        groups=tuple(
            DecidedGroup(
                name=group.name,
                modules=group.modules,
                format=None if group.format is None else formats[group.format],
                score=None if group.format is None else group.scores[group.format],
                bits=group.bits,
            )
            for group in manifest.groups
        ),
        score=manifest.allocation.score,
        effective_bits=manifest.allocation.effective_bits,
        notes=manifest.notes,
    )


def _chosen(manifest: SchemeManifest) -> list[str]:
    used = {group.format for group in manifest.groups}
    return [name for name in manifest.scheme.candidates if name in used]


def _format(source: str, name: str, vocabulary: Vocabulary) -> Format:
    """Return the format of a candidate by its name."""
    pair_name, _, overlay_name = name.partition("-")
    pair = vocabulary.pairs.get(pair_name)
    overlay = vocabulary.granularities.get(overlay_name or DEFAULT.name)
    if pair is None or overlay is None:
        missing = f"pair {pair_name!r}" if pair is None else f"granularity {overlay_name!r}"
        raise UsageError(
            f"{source}: {missing} of candidate {name} is not built in; give the "
            "sensitivity manifests of the candidates, which have its attributes"
        )
    if pair.from_preset:
        raise UsageError(
            f"{source}: candidate {name} is the preset {pair.format_name}, which only ModelOpt can "
            "read; give the sensitivity manifests of the candidates, which have its attributes"
        )
    return Format.of(name, resolve(pair, overlay))


def _from_before(files: Sequence[Path], found: CaseResult, vocabulary: Vocabulary) -> Measured:
    """Return what a manifest from before the harness records, as far as a decision needs it."""
    source = str(next(path for path in files if path.name == found.manifest))
    if len(files) > 1:
        raise UsageError(
            f"{source}: is a manifest from before the harness, whose scores do not compare with "
            "others; give it alone"
        )
    groups = found.in_module_order
    _check_recorded(source, found)
    format = _format(source, candidate_name(found.pair, found.granularity), vocabulary)
    check_modules(source, [name for group in groups for name in group.modules])
    bits = found.effective_bits or 0.0
    return Measured(
        model=found.model,
        digest=None,
        formats=(format,),
        sources=(source,),
        groups=tuple(
            ScoredGroup(
                name=group.name,
                scores=(group.score or 0.0,),
                bits=(bits,),
                weights=group.weights or 0,
            )
            for group in groups
        ),
        modules=tuple(group.modules for group in groups),
        widths=tuple(() for _ in groups),
        divergences=(None,),
        method=None if found.method == UNKNOWN else found.method,
        cost="stored",
        budget=found.selection.budget,
        notes=(
            *found.notes,
            "unknown: the digest of the model, the captions, the versions, widths of the linears",
        ),
    )


def _check_recorded(source: str, found: CaseResult) -> None:
    """Check that a manifest from before the harness records what a decision needs."""
    missing = {
        "the members of its layer groups": any(not group.modules for group in found.groups),
        "the weights of its layer groups": any(not group.weights for group in found.groups),
        "the scores of its layer groups": any(group.score is None for group in found.groups),
        "the granularity": found.granularity == UNKNOWN,
        "the bits per weight": found.effective_bits is None,
    }
    unknown = [name for name, is_missing in missing.items() if is_missing]
    if unknown:
        raise RecordError(
            f"{source}: is a manifest from before the harness and does not record "
            f"{', '.join(unknown)}; measure the case again"
        )
