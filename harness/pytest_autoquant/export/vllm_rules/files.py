"""The rule of the files that a server needs beside the weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pytest_autoquant.errors import ExportError
from pytest_autoquant.export.checkpoint.files import path_exists, read_object
from pytest_autoquant.export.vllm_rules.exported_model import ExportedModel
from pytest_autoquant.export.vllm_rules.problem import Problem

#: Sets of files of which one must be complete. Source: ``AutoTokenizer`` of transformers, which
#: ``vllm/tokenizers/hf.py`` of vLLM 0.32.0 calls; for ``tekken.json`` ``registry.py`` beside it.
_TOKENIZERS = (
    ("tokenizer.json",),
    ("tokenizer.model",),
    ("tekken.json",),
    ("vocab.json", "merges.txt"),
)

#: The same for images. Source: ``AutoImageProcessor`` of transformers, called by
#: ``vllm/transformers_utils/processor.py`` of vLLM 0.32.0.
_PROCESSORS = (("preprocessor_config.json",), ("processor_config.json",))

_TEMPLATES = ("chat_template.jinja", "chat_template.json")

_TOKENIZER_CONFIG = "tokenizer_config.json"


def files(export: ExportedModel) -> Iterator[Problem]:
    """A tokenizer, an image processor and the source's chat template are there.

    Source: ``vllm/tokenizers`` and ``vllm/transformers_utils/processor.py`` of vLLM 0.32.0. Without
    a chat template its chat endpoint refuses every request (``vllm/renderers/hf.py``; none of
    ``ARCHITECTURES`` has a template in ``vllm/transformers_utils/chat_templates``).
    """
    if not _has_one(export.folder, _TOKENIZERS):
        yield _missing(_TOKENIZERS, "vLLM cannot take a prompt")
    has_images = export.is_known and export.architecture.vision is not None
    if has_images and not _has_one(export.folder, _PROCESSORS):
        yield _missing(_PROCESSORS, "vLLM cannot take an image")
    if not _has_template(export.folder):
        yield from _template_problem(export, has_images=has_images)


def _has_one(folder: Path, sets: tuple[tuple[str, ...], ...]) -> bool:
    return any(all(path_exists(folder / name) for name in names) for names in sets)


def _missing(sets: tuple[tuple[str, ...], ...], effect: str) -> Problem:
    first, *others = (" with ".join(names) for names in sets)
    return Problem(tensor=first, text=f"is missing, as is {' or '.join(others)}: {effect}")


def _template_problem(export: ExportedModel, *, has_images: bool) -> Iterator[Problem]:
    if export.source is not None and _has_template(export.source):
        text = "is missing, and the source has one: vLLM refuses chat requests"
        yield Problem(tensor=_TEMPLATES[0], text=text)
    elif export.source is None and has_images:
        text = "is missing: vLLM refuses chat requests, unless it is given a template"
        yield Problem(tensor=_TEMPLATES[0], text=text, is_tolerated=True)


def _has_template(folder: Path) -> bool:
    if any(path_exists(folder / name) for name in _TEMPLATES):
        return True
    path = folder / _TOKENIZER_CONFIG
    try:
        return path_exists(path) and read_object(path).get("chat_template") is not None
    except ExportError:
        return False
