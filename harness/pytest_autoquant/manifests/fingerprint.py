"""What a case's result depends on: manifests with equal fingerprints measured the same thing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path

from pytest_autoquant import __version__
from pytest_autoquant.manifests.sensitivity_manifest import EnvironmentRecord, Manifest, ModelRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Attributes that ``--aq-baseline-allow`` can name.

    Attributes:
        model: digest of config and weights.
        captions: digest of the captions used, their order apart.
        config: digest of the effective config.
        harness: its version and a digest of its code.
        budget: bits per weight that the selection may take.
        torch: its version without the build, such as ``+cpu``; ``device`` says what ran.
    """

    model: str
    dtype: str
    device: str
    captions: str
    config: str
    method: str
    engine: str
    score_size: int
    budget: float
    modelopt: str
    torch: str
    transformers: str
    harness: str


def harness_build() -> str:
    """Return the harness's version and a digest of its code: what measures is an input as well."""
    root, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes().replace(b"\r\n", b"\n"))
    return f"{__version__}+{digest.hexdigest()[:8]}"


FINGERPRINT_FIELDS = tuple(field.name for field in fields(Fingerprint))


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A field in which two fingerprints differ."""

    field: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.field} {self.before[:16]} -> {self.after[:16]}"


def fingerprint(
    model: ModelRecord,
    environment: EnvironmentRecord,
    *,
    captions: str,
    config: str,
    method: str,
    engine: str,
    score_size: int,
    budget: float,
) -> Fingerprint:
    """Return the fingerprint of a case measured like this; see ``Fingerprint``."""
    return Fingerprint(
        model=model.digest,
        dtype=model.dtype,
        device=environment.device,
        captions=captions,
        config=config,
        method=method,
        engine=engine,
        score_size=score_size,
        budget=budget,
        modelopt=environment.modelopt,
        torch=environment.torch.partition("+")[0],
        transformers=environment.transformers,
        harness=environment.harness,
    )


def fingerprint_of(manifest: Manifest) -> Fingerprint:
    """Return the fingerprint of a measured case."""
    return fingerprint(
        manifest.model,
        manifest.environment,
        captions=manifest.dataset.sha256,
        config=manifest.quantization.digest,
        method=manifest.case.method,
        engine=manifest.run_config.engine,
        score_size=manifest.run_config.score_size,
        budget=manifest.run_config.effective_bits,
    )


def differences(before: Fingerprint, after: Fingerprint) -> tuple[Difference, ...]:
    """Return every field that differs, in the order of the fields."""
    return tuple(
        Difference(field=name, before=str(getattr(before, name)), after=str(getattr(after, name)))
        for name in FINGERPRINT_FIELDS
        if getattr(before, name) != getattr(after, name)
    )
