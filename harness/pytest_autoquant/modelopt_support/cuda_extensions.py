"""ModelOpt's CUDA extensions.

The first use of the INT, FP8 and MX quantizers compiles one extension each, 30 to 75 s apiece.
torch holds a lock meanwhile, so that of several workers one compiles and the others wait for it.
"""

from __future__ import annotations

ANNOUNCEMENT = (
    "loading ModelOpt's CUDA extensions; the first time they are compiled, which takes two to "
    "three minutes"
)


def build_extensions() -> None:
    """Compile or load every extension that this ModelOpt has.

    One that cannot be built raises nothing here: the quantizers that need it are then unsupported.
    """
    from pytest_autoquant.modelopt_support.private_api import cuda_extension_loaders
    from pytest_autoquant.modelopt_support.quiet import quiet

    for load in cuda_extension_loaders().values():
        with quiet():
            load()
