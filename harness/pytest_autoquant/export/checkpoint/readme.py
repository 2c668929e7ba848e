"""The README of a checkpoint: what it is, and what loads it."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_autoquant.export.vllm_rules.configs import ALGORITHMS
from pytest_autoquant.manifests.layout import SCHEME_MANIFEST
from pytest_autoquant.manifests.records.scheme_manifest import SchemeManifest
from pytest_autoquant.reports.markdown.elements import with_error
from pytest_autoquant.reports.markdown.scheme.damage import damage_sentences
from pytest_autoquant.text import counted

README = "README.md"

#: Source: loading such checkpoints with transformers 5.14.1, which knows no ``quant_method``
#: ``modelopt``.
_TRANSFORMERS = (
    "transformers does not load this checkpoint. `from_pretrained` reads the quantized weights "
    "without their scales, says so only in a log line, and the model then computes nonsense; or it "
    "refuses packed weights by their shapes."
)


def readme(manifest: SchemeManifest, algorithms: Sequence[str]) -> str:
    """Return the README as Markdown.

    Args:
        algorithms: what the export names for the formats that the scheme uses.
    """
    quantized = [group for group in manifest.groups if group.format is not None]
    parts = [
        f"# {manifest.scheme.name} of {manifest.model.name}",
        f"Quantized are {len(quantized)} of {counted(len(manifest.groups), 'layer group')} of the "
        f"language model, to {_listed(algorithms) or 'nothing'}; everything else is the source's, "
        f"bit for bit. {SCHEME_MANIFEST} has the decision and the scores of every group.",
        _damage(manifest),
        "## What loads it",
        f"- {_vllm(algorithms)}\n- {_TRANSFORMERS}\n- Other runtimes were not tried.",
        f"Written by nvidia-modelopt {manifest.environment.modelopt} and pytest-autoquant.",
    ]
    return "\n\n".join(parts) + "\n"


def _damage(manifest: SchemeManifest) -> str:
    measured = manifest.measured
    sentences = (
        f"Measured on held-out captions: KL divergence "
        f"{with_error(measured.kl, measured.standard_error)} nats per token, perplexity "
        f"{measured.perplexity:.4g} (before: {measured.perplexity_before:.4g}).",
        *damage_sentences(manifest),
    )
    return " ".join(sentences)


def _vllm(algorithms: Sequence[str]) -> str:
    unknown = [name for name in algorithms if name not in ALGORITHMS]
    if unknown:
        return f"vLLM does not load {_listed(unknown)} as ModelOpt writes it."
    return (
        "vLLM has a loader for these algorithms; `aq-harness check-export` applies its rules to "
        "the files."
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(sorted(names))
