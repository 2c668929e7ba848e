"""Notes in a manifest: what a reader of the result has to know about its inputs."""

from __future__ import annotations

from collections.abc import Iterable

from pytest_autoquant.calibration.batches import CalibrationData
from pytest_autoquant.formats.effective_config import EffectiveConfig
from pytest_autoquant.models.layers import Linear


def data_notes(data: CalibrationData) -> tuple[str, ...]:
    """Return a note where a measurement used fewer captions than its size asks for."""
    notes = [data.shortfall] if data.shortfall else []
    if data.dropped:
        notes.append(
            f"{data.captions.name}: left out {len(data.dropped)} with fewer than two tokens, such "
            f"as {data.dropped[0]!r}"
        )
    return tuple(notes)


def padding_notes(linears: Iterable[Linear], config: EffectiveConfig) -> tuple[str, ...]:
    """Return the linears whose input width the block size does not divide, a line per width."""
    padded: dict[tuple[int, int], list[str]] = {}
    for linear in linears:
        width = linear.padded_to(config)
        if width is not None:
            padded.setdefault((linear.in_features, width), []).append(linear.name)
    return tuple(
        f"block size does not divide the input width {width} of {names[0]}"
        + (f" and {len(names) - 1} more linears" if len(names) > 1 else "")
        + f": padded to {to}"
        for (width, to), names in padded.items()
    )
