"""The modules that no format quantizes, as regular expressions: heads, vision towers, gates."""

from __future__ import annotations

import re

from pytest_autoquant.formats.quant_pair import EXCLUSIONS


def excluded_modules() -> list[str]:
    """Return regular expressions of the names of modules, which match from the start."""
    names = [e["quantizer_name"] for e in EXCLUSIONS if not e.get("parent_class")]
    return [_of_modules(name) for name in names]


def _of_modules(pattern: str) -> str:
    """Return a pattern of the names of quantizers as a regular expression of their modules."""
    stem = pattern.removesuffix("*").removesuffix(".")
    return re.escape(stem).replace(r"\*", ".*") + (r"(\.|$)" if pattern.endswith(".*") else "")
