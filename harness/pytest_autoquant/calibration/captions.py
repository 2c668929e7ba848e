"""Calibration captions: which ones, and in which batches.

Only captions of equal token length share a batch, so there is no padding: no pad token enters a
calibration statistic and no compute is spent on one.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from pytest_autoquant.calibration.sizes import SIZES
from pytest_autoquant.errors import CaptionError

BUILTIN_NAME = "autoquant-captions"
HELD_OUT, HELD_OUT_NAME = "held-out", "autoquant-held-out"
MIN_TOKENS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionSet:
    """The captions of one size, in file order.

    Attributes:
        name: file name, or the built-in set's name.
        requested: how many the size asks for; ``len(lines)`` is how many there are.
        lines: the captions, stripped, without blank lines.
    """

    name: str
    size: str
    requested: int
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Token ids of equally long captions, ``rows[caption][token]``."""

    rows: tuple[tuple[int, ...], ...]

    @property
    def num_tokens(self) -> int:
        """Tokens in the batch."""
        return sum(len(row) for row in self.rows)

    @property
    def num_predicted(self) -> int:
        """Next-token predictions in the batch: one fewer than its tokens, per caption."""
        return sum(len(row) - 1 for row in self.rows)

    def split(self, tokens: int) -> Iterator[Batch]:
        """Yield the same captions in batches of at most ``tokens`` tokens, one caption at least."""
        step = max(1, tokens // len(self.rows[0]))
        for start in range(0, len(self.rows), step):
            yield Batch(rows=self.rows[start : start + step])


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationData:
    """Batches of one size: ``scored`` ones come first, ``unscored`` ones only calibrate.

    Attributes:
        sha256: over the captions used, one per line, the scored ones first, each part sorted.
        dropped: captions left out because they have fewer than two tokens.
    """

    captions: CaptionSet
    scored: tuple[Batch, ...]
    unscored: tuple[Batch, ...]
    batch_size: int
    sha256: str
    dropped: tuple[str, ...]

    @property
    def batches(self) -> tuple[Batch, ...]:
        """Every batch, scored ones first."""
        return self.scored + self.unscored

    @property
    def shortfall(self) -> str | None:
        """One sentence when the file holds fewer captions than the size needs, else None."""
        found, requested = len(self.captions.lines), self.captions.requested
        if found >= requested:
            return None
        return (
            f"{self.captions.name} holds {found} captions, size {self.captions.size} needs "
            f"{requested}: measured on {found - len(self.dropped)}"
        )

    def split(self, tokens: int) -> CalibrationData:
        """Return the same captions in batches of at most ``tokens`` tokens, one caption at least.

        Gradients of a summed loss do not depend on the batches, so neither do scores.
        """
        return replace(
            self,
            scored=tuple(part for batch in self.scored for part in batch.split(tokens)),
            unscored=tuple(part for batch in self.unscored for part in batch.split(tokens)),
        )

    @property
    def scored_tokens(self) -> int:
        """Next-token predictions that the loss sums over: the score's denominator."""
        return sum(batch.num_predicted for batch in self.scored)

    @property
    def token_lengths(self) -> dict[int, int]:
        """How many captions there are of each token length."""
        lengths = Counter(len(row) for batch in self.batches for row in batch.rows)
        return dict(sorted(lengths.items()))


def load_captions(path: Path | None, size: str) -> CaptionSet:
    """Read the first captions of a file, or of the built-in set.

    Args:
        path: plain text, one caption per line, UTF-8; blank lines are ignored. None for the
            built-in set.
        size: a key of ``SIZES``.

    Raises:
        CaptionError: a missing, unreadable, non-UTF-8 or empty file. Fewer captions than the size
            asks for are no error; see ``CalibrationData.shortfall``.
    """
    lines = _lines(path, "captions.txt")
    name = BUILTIN_NAME if path is None else path.name
    requested = SIZES[size]
    return CaptionSet(name=name, size=size, requested=requested, lines=lines[:requested])


def load_held_out(path: Path | None) -> CaptionSet:
    """Read the captions that measure damage: all of a file, or the built-in set.

    The built-in ones share nothing with those that calibrate.

    Raises:
        CaptionError: see ``load_captions``.
    """
    name = HELD_OUT_NAME if path is None else path.name
    lines = _lines(path, "heldout.txt")
    return CaptionSet(name=name, size=HELD_OUT, requested=len(lines), lines=lines)


def calibration_data(
    captions: CaptionSet,
    token_ids: Sequence[Sequence[int]],
    *,
    batch_size: int,
    score_size: int,
) -> CalibrationData:
    """Bucket tokenized captions into batches of equal length.

    Args:
        token_ids: one row of token ids per caption of ``captions``, in the same order.
        batch_size: most captions in a batch.
        score_size: how many captions are scored; the others only calibrate.

    Raises:
        CaptionError: no caption has at least two tokens.
    """
    usable = [i for i, row in enumerate(token_ids) if len(row) >= MIN_TOKENS]
    if not usable:
        raise CaptionError(
            f"{captions.name}: none of the {len(captions.lines)} captions has {MIN_TOKENS} tokens "
            "or more; a caption needs at least one token to predict from another"
        )
    rows = [tuple(token_ids[i]) for i in usable]
    kept = [captions.lines[i] for i in usable]
    return CalibrationData(
        captions=captions,
        scored=bucket(rows[:score_size], batch_size),
        unscored=bucket(rows[score_size:], batch_size),
        batch_size=batch_size,
        sha256=captions_digest(kept[:score_size], kept[score_size:]),
        dropped=tuple(line for i, line in enumerate(captions.lines) if i not in set(usable)),
    )


def bucket(rows: Sequence[tuple[int, ...]], batch_size: int) -> tuple[Batch, ...]:
    """Group rows by length, shortest first, at most ``batch_size`` to a batch; order is kept."""
    by_length: dict[int, list[tuple[int, ...]]] = {}
    for row in rows:
        by_length.setdefault(len(row), []).append(row)
    return tuple(
        Batch(rows=tuple(by_length[length][start : start + batch_size]))
        for length in sorted(by_length)
        for start in range(0, len(by_length[length]), batch_size)
    )


def captions_digest(scored: Sequence[str], unscored: Sequence[str]) -> str:
    """Hash two sets of captions: scores do not depend on the order within either."""
    text = "\n".join([*sorted(scored), "", *sorted(unscored)])
    return hashlib.sha256(text.encode()).hexdigest()


def _lines(path: Path | None, builtin: str) -> tuple[str, ...]:
    text = _builtin_text(builtin) if path is None else _file_text(path)
    lines = tuple(line.strip() for line in text.split("\n") if line.strip())
    if not lines:
        raise CaptionError(f"captions file {path}: is empty; give one caption per line")
    return lines


def _builtin_text(name: str) -> str:
    return (files("pytest_autoquant.calibration") / "data" / name).read_text(encoding="utf-8")


def _file_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise CaptionError(f"captions file {path}: does not exist") from None
    except UnicodeDecodeError as error:
        raise CaptionError(
            f"captions file {path}: is not UTF-8 (byte {error.start}); convert it, for example "
            "with iconv -t utf-8"
        ) from None
    except OSError as error:
        raise CaptionError(f"captions file {path}: cannot be read: {error.strerror}") from None
