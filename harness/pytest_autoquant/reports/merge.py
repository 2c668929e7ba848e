"""Joining the report folders of runs that started independently, such as shards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_autoquant.errors import RecordError
from pytest_autoquant.files import check_writable, write_atomic
from pytest_autoquant.manifests.case_result import CaseResult, case_result_of
from pytest_autoquant.manifests.fingerprint import fingerprint_of
from pytest_autoquant.manifests.layout import find_schemes, state_path
from pytest_autoquant.manifests.records.outcome_log import LoggedOutcome
from pytest_autoquant.manifests.records.outcomes import StructureCheck
from pytest_autoquant.manifests.records.scheme_manifest import (
    SchemeManifest,
    dump_scheme,
    read_scheme_manifest,
)
from pytest_autoquant.manifests.records.sensitivity_manifest import Manifest, ModelRecord
from pytest_autoquant.manifests.records.session_summary import (
    SUMMARY_JSON,
    SessionSummary,
    read_summary,
)
from pytest_autoquant.regression.recorded_model import recorded_model
from pytest_autoquant.reports.folder import add_outcomes, read_outcomes
from pytest_autoquant.reports.found_cases import find_cases
from pytest_autoquant.reports.ownership import refuse_foreign_files
from pytest_autoquant.reports.session_results import SessionResults
from pytest_autoquant.reports.write import draw_layer_maps, write_case, write_summary
from pytest_autoquant.text import told_apart

#: Fingerprint fields that one report must not mix. Captions are compared per size; config, method
#: and engine are the case's own.
_COMMON_FIELDS = (
    "model",
    "dtype",
    "device",
    "modelopt",
    "torch",
    "transformers",
    "harness",
)


#: Characters of a value that a message shows; more where two values begin alike.
_SHOWN = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One report folder.

    Attributes:
        manifests: by path.
        old: cases from before the harness, by id; they are named and not copied.
        outcomes: those without a manifest.
    """

    root: Path
    summary: SessionSummary
    outcomes: tuple[LoggedOutcome, ...]
    manifests: Mapping[Path, Manifest]
    old: Mapping[str, CaseResult]
    schemes: tuple[SchemeManifest, ...]


def merge(folders: Sequence[Path], target: Path, *, partial: bool = False) -> SessionResults:
    """Write the cases of several report folders to ``target`` as one report.

    Args:
        partial: merge although shards are missing or cases were lost; the summary names the lost.

    Raises:
        RecordError: a folder is missing, is passed twice, has no summary or an unreadable record;
            two folders hold the same case; cases differ in what they measured; shards are missing
            or cases lost, unless ``partial``. Nothing is written then.
        AnotherModelError: the target has results of another model under the name of one of these.
        WriteError: the target cannot be written, or a report would replace a file of somebody else.
    """
    problems = [*_unusable(folders)]
    if problems:
        raise RecordError("\n".join(problems))
    sources = [_read(folder) for folder in folders]
    problems = [*_duplicates(sources), *_incompatible(sources)]
    if not partial:
        problems += [*_missing_shards(sources), *_lost(sources), *_unwritten(sources)]
    if problems:
        raise RecordError("\n".join(problems))
    for model in _models(sources):
        recorded = recorded_model(target, model.name)
        if recorded is not None:
            recorded.refuse_another(model)
    check_writable(target)
    refuse_foreign_files(target)
    results = SessionResults()
    for source in sources:
        for path, manifest in source.manifests.items():
            write_case(target, manifest, _search_state(path))
            results.add(case_result_of(manifest))
        for scheme in source.schemes:  # exported checkpoints are not copied
            write_atomic(target / scheme.path, dump_scheme(scheme))
            results.schemes[scheme.case_id] = scheme
        _take_lines(results, source)
    results.lost = tuple(sorted(set(results.lost) - results.case_ids))
    draw_layer_maps(target, results.cases.values())
    write_summary(target, results)
    return results


def _unusable(folders: Sequence[Path]) -> Iterator[str]:
    """Yield one line per folder that is passed twice, does not exist or is no report folder."""
    seen: set[Path] = set()
    for folder in dict.fromkeys(folders):
        if folder.resolve() in seen or folders.count(folder) > 1:
            yield f"{folder}: was passed more than once; pass it once"
        elif not folder.is_dir():
            yield f"{folder}: no such folder; pass the report folder of a run"
        elif not (folder / SUMMARY_JSON).exists():
            yield f"{folder}: holds no {SUMMARY_JSON}; pass the report folder of a run"
        seen.add(folder.resolve())


def _read(folder: Path) -> Source:
    path = folder / SUMMARY_JSON
    summary = read_summary(path)
    manifests: dict[Path, Manifest] = {}

    def keep(path: Path, manifest: Manifest, _case: CaseResult) -> None:
        manifests[path] = manifest

    found = find_cases(folder, visit=keep)
    if found.left_out:
        raise RecordError("\n".join(f"{folder}/{reason}" for reason in found.left_out))
    return Source(
        root=folder,
        summary=summary,
        outcomes=read_outcomes(folder, summary),
        manifests=manifests,
        old={case_id: case for case_id, case in found.by_id().items() if case.is_old},
        schemes=tuple(read_scheme_manifest(path, folder) for path in find_schemes(folder)),
    )


def _models(sources: Iterable[Source]) -> tuple[ModelRecord, ...]:
    """Return each model of the folders once."""
    measured = (manifest.model for source in sources for manifest in source.manifests.values())
    derived = (scheme.model for source in sources for scheme in source.schemes)
    return tuple(dict.fromkeys((*measured, *derived)))


def _take_lines(results: SessionResults, source: Source) -> None:
    add_outcomes(results, source.outcomes)
    results.left_out += [
        f"{source.root}/{case.manifest}: is from before the harness and was not copied; render "
        "and compare read it where it is"
        for case in source.old.values()
    ]
    results.gated |= source.summary.gated
    results.lost += (*_lost_cases(source), *_without_manifest(source))


def _lost_cases(source: Source) -> tuple[str, ...]:
    """Return the lost cases of a folder; a killed run lists those that it had finished as well."""
    last = source.summary.last_run
    if last is not None and last.is_finished:
        return source.summary.lost
    known = set(_case_ids(source))
    return tuple(case_id for case_id in source.summary.lost if case_id not in known)


def _search_state(manifest_path: Path) -> bytes | None:
    """Return the search state that ``--aq-save-state`` wrote beside a manifest, if any."""
    path = state_path(manifest_path)
    return path.read_bytes() if path.is_file() else None


def _without_manifest(source: Source) -> tuple[str, ...]:
    """Return the cases that a summary lists and whose manifest is not there."""
    found = {*source.old, *(manifest.case.case_id for manifest in source.manifests.values())}
    return tuple(case_id for case_id in source.summary.case_ids if case_id not in found)


def _unwritten(sources: Iterable[Source]) -> Iterator[str]:
    for source in sources:
        for case_id in _without_manifest(source)[:1]:
            yield f"{source.root} has no manifest of {case_id}, which its summary lists"


def _case_ids(source: Source) -> Iterator[str]:
    yield from (manifest.case.case_id for manifest in source.manifests.values())
    yield from (scheme.case_id for scheme in source.schemes)
    for outcome in source.outcomes:
        if not isinstance(outcome, StructureCheck):
            yield outcome.case_id


def _duplicates(sources: Iterable[Source]) -> Iterator[str]:
    seen: dict[str, Path] = {}
    for source in sources:
        twice = [case_id for case_id in dict.fromkeys(_case_ids(source)) if case_id in seen]
        if twice:
            more = f" and {len(twice) - 1} more" if len(twice) > 1 else ""
            yield (
                f"{source.root} and {seen[twice[0]]} both hold {twice[0]}{more}; "
                "pass only one of them"
            )
        seen |= dict.fromkeys(_case_ids(source), source.root)


def _incompatible(sources: Iterable[Source]) -> Iterator[str]:
    """Yield one line per field in which manifests differ, with a file of either side."""
    seen: dict[str, tuple[str, Path]] = {}
    reported = set()
    for source in sources:
        for path, manifest in source.manifests.items():
            for field, value in _common(manifest):
                first, where = seen.setdefault(field, (value, path))
                if first != value and field not in reported:
                    reported.add(field)
                    shown = told_apart(first, value, _SHOWN)
                    yield f"{field} differs: {shown[0]} in {where}, {shown[1]} in {path}"


def _common(manifest: Manifest) -> Iterator[tuple[str, str]]:
    found = fingerprint_of(manifest)
    for field in _COMMON_FIELDS:
        yield field, str(getattr(found, field))
    if found.commit is not None:
        yield "commit", found.commit
    yield "bit budget", f"{manifest.run_config.effective_bits:g}"
    yield f"captions of size {manifest.case.size}", found.captions
    if found.tokens is not None:
        yield f"token ids of size {manifest.case.size}", found.tokens
    yield f"scored captions of size {manifest.case.size}", str(found.score_size)


def _missing_shards(sources: Sequence[Source]) -> Iterator[str]:
    shards = [source.summary.part for source in sources if source.summary.part is not None]
    if not shards:
        return
    counts = {shard.count for shard in shards}
    if len(counts) > 1:
        yield f"shards of different runs: some of {', some of '.join(map(str, sorted(counts)))}"
        return
    (count,) = counts
    missing = sorted(set(range(1, count + 1)) - {shard.index for shard in shards})
    if missing:
        names = ", ".join(f"{index}/{count}" for index in missing)
        yield f"missing shards: {names}; pass their folders too, or --partial to merge without them"


def _lost(sources: Iterable[Source]) -> Iterator[str]:
    for source in sources:
        lost = _lost_cases(source)
        if lost:
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            yield (
                f"{source.root} lost {lost[0]}{more}; run it again with --aq-resume, or pass "
                "--partial to merge without them"
            )
