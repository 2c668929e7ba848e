"""What a case's result depends on: cases with equal fingerprints measure the same thing."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Protocol

from pytest_autoquant import __version__
from pytest_autoquant.manifests.records.sensitivity_manifest import (
    EnvironmentRecord,
    Manifest,
    ModelRecord,
    RunConfig,
)
from pytest_autoquant.text import told_apart

#: Version of what is measured. Raise it by hand with every change that can change a score or a
#: selection: capture, calibration, quantizers, score formula, solver. Changes to reports, options
#: and the command line leave it: measurements of equal versions are comparable, and
#: ``--aq-resume`` keeps them.
MEASUREMENT_VERSION = 3

#: What manifests record as ``environment.harness``: package version and measurement version.
HARNESS_VERSION = f"{__version__}+m{MEASUREMENT_VERSION}"

#: What a difference shows for a value that an older manifest does not record.
UNKNOWN = "unknown"

#: Characters of a digest or a version that messages show; more where the values begin alike.
_SHOWN = 16

_MEASUREMENT_VERSION = re.compile(r"\+(m\d+)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """The inputs on which scores depend; ``--aq-baseline-allow`` names its fields.

    The bit budget is none of them: ``selection.with_budget`` selects anew from the scores. Neither
    are batch size, seed (the digest of random weights depends on it) and host.

    Attributes:
        model: digest of config and weights; of weights alone for a hub checkpoint.
        commit: of a hub checkpoint, whose config the digest leaves out; None for any other, and for
            a manifest that does not record it.
        captions: digest of the captions used, whatever their order.
        tokens: digest of their token ids, which the tokenizer and the limit on a caption's length
            decide; None for a manifest that does not record it.
        config: digest of the effective config.
        harness: the measurement version, such as ``m1``; the package version is not part of it.
        score_size: number of captions that are scored: fewer than ``--aq-score-size`` in a small
            set.
        torch: version without the build suffix, such as ``+cpu``: ``device`` says what ran.
    """

    model: str
    commit: str | None
    dtype: str
    device: str
    captions: str
    tokens: str | None
    config: str
    method: str
    engine: str
    score_size: int
    modelopt: str
    torch: str
    transformers: str
    harness: str


FINGERPRINT_FIELDS = tuple(field.name for field in fields(Fingerprint))


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A field in which two fingerprints differ; a value that is not recorded is ``unknown``."""

    field: str
    before: str
    after: str

    @property
    def is_known(self) -> bool:
        """Whether both values are known: where one is not, the inputs may still be equal."""
        return UNKNOWN not in (self.before, self.after)

    @property
    def shown(self) -> tuple[str, str]:
        """Both values, cut where a difference is to be seen."""
        return told_apart(self.before, self.after, _SHOWN)

    def __str__(self) -> str:
        before, after = self.shown
        return f"{self.field} {before} -> {after}"


class Captions(Protocol):
    """Captions, as calibration data or as their record.

    The digests identify them, together with how many of them are scored.
    """

    @property
    def sha256(self) -> str: ...

    @property
    def tokens_sha256(self) -> str | None: ...

    @property
    def num_score_samples(self) -> int: ...


class Config(Protocol):
    """An effective config or its record: ``digest`` identifies equal quantized bits."""

    @property
    def digest(self) -> str: ...


class ScoredCase(Protocol):
    """A case or its record."""

    @property
    def method(self) -> str: ...


def fingerprint(
    *,
    case: ScoredCase,
    config: Config,
    captions: Captions,
    model: ModelRecord,
    environment: EnvironmentRecord,
    run: RunConfig,
) -> Fingerprint:
    """Return the fingerprint of a case that is, or would be, measured with these inputs."""
    return Fingerprint(
        model=model.digest,
        commit=model.commit,
        dtype=model.dtype,
        device=environment.device,
        captions=captions.sha256,
        tokens=captions.tokens_sha256,
        config=config.digest,
        method=case.method,
        engine=run.engine,
        score_size=captions.num_score_samples,
        modelopt=environment.modelopt,
        torch=environment.torch.partition("+")[0],
        transformers=environment.transformers,
        harness=_measurement_version(environment.harness),
    )


def fingerprint_of(manifest: Manifest) -> Fingerprint:
    """Return the fingerprint of a measured case."""
    return fingerprint(
        case=manifest.case,
        config=manifest.quantization,
        captions=manifest.dataset,
        model=manifest.model,
        environment=manifest.environment,
        run=manifest.run_config,
    )


def _measurement_version(harness: str) -> str:
    """Return the measurement version in ``environment.harness``.

    Manifests of early versions have a digest of the source files there, which stands for itself.
    """
    found = _MEASUREMENT_VERSION.search(harness)
    return harness if found is None else found[1]


def _text(found: Fingerprint, name: str) -> str:
    value = getattr(found, name)
    return UNKNOWN if value is None else str(value)


def differences(before: Fingerprint, after: Fingerprint) -> tuple[Difference, ...]:
    """Return every field that differs, in the order of the fields.

    Token ids are compared where the captions are equal: those of others differ anyway. Commits are
    compared where both are recorded: the model's digest tells a folder from a hub checkpoint.
    """
    return tuple(
        Difference(field=name, before=_text(before, name), after=_text(after, name))
        for name in FINGERPRINT_FIELDS
        if getattr(before, name) != getattr(after, name)
        and (name != "tokens" or before.captions == after.captions)
        and (name != "commit" or None not in (before.commit, after.commit))
    )
