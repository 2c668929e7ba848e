"""Compile ModelOpt's CUDA extensions: ``python -m <this module>``.

The first use of the INT, FP8 and MX quantizers compiles one extension each, 30 to 75 s apiece. A
controller runs this module in a process of its own, so that it needs no torch itself and its
workers find the extensions compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

ANNOUNCEMENT = (
    "loading ModelOpt's CUDA extensions; the first time they are compiled, which takes two to "
    "three minutes"
)

Loader = Callable[..., ModuleType | None]


def loaders() -> Mapping[str, Loader]:
    """Return what compiles or loads each extension that this ModelOpt has, by its name."""
    from modelopt.torch.quantization import extensions

    module: Any = extensions
    names = sorted(name for name in vars(module) if name.startswith("get_cuda_ext"))
    return {name.removeprefix("get_"): getattr(module, name) for name in names}


def build() -> None:
    """Compile or load every extension; one that cannot be built shows when its quantizer runs."""
    from pytest_autoquant.modelopt_support.probe import quiet

    for load in loaders().values():
        with quiet():
            load()


if __name__ == "__main__":
    build()
