"""One pytest session: the settings, the grid, the bench behind it, and what arrived."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.captions import load_captions
from harness.case import Case, Combination, cases, combinations, select_sizes, select_vocabulary
from harness.conf import Vocabulary, load_vocabulary
from harness.errors import HarnessError, ManifestError
from harness.files import check_writable
from harness.manifest import dump_manifest, load_manifest
from harness.registry import ModelSource, find_model
from harness.report.writer import write_case, write_summary
from harness.results import ErrorLine, Results, SkipLine, StructureLine, case_line
from harness.settings import Settings
from harness.support import Support

if TYPE_CHECKING:
    from harness.bench import Bench, Warn
    from harness.manifest import Manifest
    from harness.progress import Progress


class AutoquantSession:
    """What the plugin's hooks hand over to.

    A worker uses ``support`` and ``measure``; the controller uses ``receive`` and ``finish``.
    Without xdist one process is both.
    """

    def __init__(self, settings: Settings, rootdir: Path) -> None:
        self.settings = settings
        self.root = settings.report_root(rootdir)
        self.results = Results()
        self.vocabulary: Vocabulary = select_vocabulary(
            load_vocabulary(settings.conf), settings.pairs, settings.granularities
        )
        self.sizes = select_sizes(settings.sizes)
        self.source: ModelSource = find_model(
            settings.model, random_weights=settings.random_seed is not None
        )
        if settings.captions is not None:
            load_captions(settings.captions, self.sizes[0])
        self._selected: tuple[Case, ...] = ()
        self._bench: Bench | None = None

    @cached_property
    def combinations(self) -> tuple[Combination, ...]:
        """Every selected pair under every selected overlay."""
        return tuple(combinations(self.vocabulary))

    @cached_property
    def cases(self) -> tuple[Case, ...]:
        """Every sensitivity case of the selected grid."""
        return tuple(
            cases(
                self.vocabulary,
                self.sizes,
                model=self.source.name,
                method=self.settings.method,
            )
        )

    def select(self, selected: Iterable[Case]) -> None:
        """Say which cases will run, in order; aliases point at the first of equal ones."""
        self._selected = tuple(selected)

    def bench(self, progress: Progress, warn: Warn) -> Bench:
        """Return the measuring side, built on first use: this is where torch is imported."""
        if self._bench is None:
            from harness.bench import Bench

            self._bench = Bench(self.settings, self.source, progress, warn)
        return self._bench

    def canonical(self, case: Case, bench: Bench) -> Case:
        """Return the first selected case with the same effective config, which measures for all."""
        wanted = bench.config(case.combination).digest
        for other in self._selected:
            if (other.size, other.method) != (case.size, case.method):
                continue
            config = bench.config(other.combination)
            if config.digest == wanted and config.no_effect is None:
                return other
        return case

    def measure(self, case: Case, bench: Bench) -> tuple[Manifest, bytes | None]:
        """Measure one case."""
        first = self.canonical(case, bench)
        return bench.measure(case, None if first == case else first.case_id, self._selected)

    def structure(self, combination: Combination, bench: Bench) -> StructureLine:
        """Resolve a combination, have ModelOpt validate it, and find its status."""
        config = bench.config(combination)
        bench.prober.accepts(config)
        support = bench.support(combination)
        return StructureLine(
            pair=combination.pair.name,
            granularity=combination.granularity.name,
            status=support.status.value,
            reason=support.reason,
            format_name=combination.pair.format_name,
            effective_bits=config.effective_bits,
            digest=config.digest,
        )

    def check_report_folder(self) -> None:
        """Raise ManifestError now if reports could not be written later."""
        check_writable(self.root)

    def receive(self, message: str, state: bytes | None) -> None:
        """Take in what a worker attached to a report; a manifest is on disk when this returns."""
        kind, body = json.loads(message)
        if kind == "manifest":
            self._receive_manifest(body, state)
        elif kind == "skip":
            self.results.add(SkipLine(**body))
        elif kind == "error":
            self.results.add(ErrorLine(**body))
        else:
            line = StructureLine(**body)
            self.results.structures[line.pair, line.granularity] = line

    def finish(self) -> tuple[Path, ...]:
        """Write the summary; return the files, none when nothing of ours ran."""
        if self.results.is_empty:
            return ()
        try:
            return write_summary(self.root, self.results)
        except ManifestError as error:
            self.results.write_errors.append(str(error))
            return ()

    def _receive_manifest(self, body: str, state: bytes | None) -> None:
        manifest = load_manifest(body, source="a worker's report")
        line = case_line(manifest, manifest.path)
        self.results.add(line)
        try:
            write_case(self.root, manifest, state)
        except HarnessError as error:
            self.results.write_errors.append(str(error))


def manifest_message(manifest: Manifest) -> str:
    """Return the message that carries a manifest to the controller."""
    return json.dumps(("manifest", dump_manifest(manifest)))


def structure_message(line: StructureLine) -> str:
    """Return the message that carries a structure case's outcome."""
    return _message("structure", line)


def skip_message(case: Case, support: Support) -> str:
    """Return the message that carries a skipped case."""
    line = SkipLine(case_id=case.case_id, status=support.status.value, reason=support.reason)
    return _message("skip", line)


def error_message(case: Case, problem: str) -> str:
    """Return the message that names a case which raised."""
    return _message("error", ErrorLine(case_id=case.case_id, problem=problem))


def _message(kind: str, body: Any) -> str:
    return json.dumps((kind, asdict(body)))
