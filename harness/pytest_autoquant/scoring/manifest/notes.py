"""Notes in a manifest: what a reader of the result has to know about its inputs."""

from __future__ import annotations

from collections.abc import Iterable

from pytest_autoquant.calibration.batches import CalibrationData
from pytest_autoquant.formats.effective_config import EffectiveConfig
from pytest_autoquant.models.layers import Linear
from pytest_autoquant.scoring.engine import Measurement
from pytest_autoquant.text import counted


def data_notes(data: CalibrationData) -> tuple[str, ...]:
    """Return a note where the captions are fewer than the size asks for, or not all different."""
    notes = [*([data.shortfall] if data.shortfall else ()), *length_notes(data)]
    if data.num_duplicates:
        notes.append(
            f"{data.captions.name}: {data.num_duplicates} of {data.num_captions} captions have the "
            "tokens of an earlier one, which so counts more than once"
        )
    return tuple(notes)


def error_bar_notes(measurement: Measurement, data: CalibrationData) -> tuple[str, ...]:
    """Return a note where scores have no error bars, and why."""
    if any(group.per_caption is None for group in measurement.groups):
        return ("no error bars: stock AutoQuant does not tell captions apart",)
    if data.num_score_samples < 2:
        return ("no error bars: a single caption is scored; score at least two",)
    return ()


def length_notes(data: CalibrationData) -> tuple[str, ...]:
    """Return a note where captions are too short to be used, or too long to be used whole."""
    notes = []
    if data.dropped:
        notes.append(
            f"{data.captions.name}: left out {len(data.dropped)} with fewer than two tokens, such "
            f"as {data.dropped[0]!r}"
        )
    if data.num_truncated:
        notes.append(
            f"{data.captions.name}: cut {counted(data.num_truncated, 'caption')} to "
            f"{data.max_tokens} tokens, the limit of --aq-max-tokens or of the model"
        )
    return tuple(notes)


def held_out_notes(held_out: CalibrationData, data: CalibrationData) -> tuple[str, ...]:
    """Return a note where held-out captions also calibrate, or are too few for error bars."""
    notes = [*length_notes(held_out)]
    calibrating = {row for batch in data.batches for row in batch.rows}
    shared = sum(row in calibrating for batch in held_out.batches for row in batch.rows)
    if shared:
        notes.append(
            f"{held_out.captions.name}: {shared} of {counted(held_out.num_captions, 'caption')} "
            f"also calibrate (size {data.captions.size} of {data.captions.name}), so damage is "
            "measured in part on what set the ranges; give others with --aq-held-out"
        )
    if held_out.num_captions < 2:
        notes.append(
            f"{held_out.captions.name}: no error bars and no verdict beside the uniform scheme: "
            "a single caption is held out; give at least two"
        )
    return tuple(notes)


def size_notes(size: str, original: str) -> tuple[str, ...]:
    """Return a note where a size holds the captions of another one, which measured them."""
    if size == original:
        return ()
    return (
        f"size {size} holds the same captions as {original}: measured once, so equal results say "
        "nothing of stability",
    )


def padding_notes(linears: Iterable[Linear], config: EffectiveConfig) -> tuple[str, ...]:
    """Return the linears whose input width the block size does not divide, a line per width."""
    padded: dict[tuple[int, int], list[str]] = {}
    for linear in linears:
        width = linear.padded_to(config)
        if width is not None:
            padded.setdefault((linear.in_features, width), []).append(linear.name)
    return tuple(
        f"block size does not divide the input width {width} of {names[0]}"
        + (f" and {counted(len(names) - 1, 'more linear')}" if len(names) > 1 else "")
        + f": padded to {to}"
        for (width, to), names in padded.items()
    )
