"""Names of layer groups without the path of the language model in its parent.

Manifests name one group ``layers.0.mlp.up_proj``, ``language_model.layers.0.mlp.up_proj`` or
``model.language_model.layers.0.mlp.up_proj``, by the module that AutoQuant was given.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache

#: The name of a list of layers and everything after it.
_FROM_LAYER_LIST = re.compile(r"(?:^|\.)([^.]+\.\d+\..*)$")


@lru_cache(maxsize=1024)
def short_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return each group's name from its list of layers on, or its last part outside of one.

    ``model.language_model.layers.0.mlp.up_proj`` becomes ``layers.0.mlp.up_proj``. A name stays
    whole where two groups of the model would be called alike.
    """
    short = [_short(name) for name in names]
    counts = Counter(short)
    return tuple(cut if counts[cut] == 1 else name for cut, name in zip(short, names, strict=True))


def _short(name: str) -> str:
    found = _FROM_LAYER_LIST.search(name)
    return name.rpartition(".")[2] if found is None else found[1]
