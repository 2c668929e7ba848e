"""Numbers of a model's config.json, checked when they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_autoquant.export.checkpoint.files import malformed

#: Largest accepted number of layers or experts: a damaged file must not ask for more tensors than
#: fit in memory. Published models have up to 126 layers and 512 experts.
MOST_REPEATED = 1024

_MOST = 2**40


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigNumbers:
    """One part of a config, such as ``text_config``.

    Attributes:
        path: of the file, for messages.
    """

    raw: Mapping[str, Any]
    path: Path

    def part(self, key: str) -> ConfigNumbers:
        """Return a nested part; the config itself where it has no such part.

        transformers 4 wrote the text model's numbers of some families at the top level.

        Raises:
            ExportError: it is no object.
        """
        nested = self.raw.get(key)
        if nested is not None and not isinstance(nested, dict):
            raise malformed(self.path, key, "an object", nested)
        return self if nested is None else ConfigNumbers(raw=nested, path=self.path)

    def number(self, *keys: str, default: int | None = None, most: int = _MOST) -> int:
        """Return the number under the first of ``keys`` that is there, else ``default``.

        Raises:
            ExportError: it is missing without a default, or is no whole number from 0 to ``most``.
        """
        given = (self.raw[key] for key in keys if self.raw.get(key) is not None)
        value: Any = next(given, default)
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if not is_number or not 0 <= value <= most:
            raise malformed(self.path, keys[0], f"a whole number from 0 to {most}", value)
        return int(value)

    def flag(self, key: str, *, default: bool) -> bool:
        """Return a boolean.

        Raises:
            ExportError: it is something else.
        """
        value = self.raw.get(key)
        if value is not None and not isinstance(value, bool):
            raise malformed(self.path, key, "true or false", value)
        return default if value is None else value

    def numbers(self, key: str) -> tuple[int, ...]:
        """Return a list of whole numbers, empty where there is none.

        Raises:
            ExportError: it is something else.
        """
        values = self.raw.get(key) or []
        if not isinstance(values, list) or not all(isinstance(value, int) for value in values):
            raise malformed(self.path, key, "a list of whole numbers", values)
        return tuple(values)
