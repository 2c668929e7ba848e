"""Batches of tokenized captions.

Only captions of equal token length share a batch, so there is no padding: no pad token enters a
calibration statistic and no compute is spent on one.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pytest_autoquant.calibration.captions import CaptionSet
from pytest_autoquant.errors import CaptionError
from pytest_autoquant.text import counted

#: Fewest tokens of a caption that can be used: one token to predict another from.
MIN_TOKENS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Token ids of equally long captions, ``rows[caption][token]``."""

    rows: tuple[tuple[int, ...], ...]

    @property
    def num_tokens(self) -> int:
        """Number of tokens in the batch."""
        return sum(len(row) for row in self.rows)

    @property
    def num_predicted(self) -> int:
        """Number of next-token predictions: one fewer than the tokens, per caption."""
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
        dropped: captions left out because they have fewer than ``MIN_TOKENS`` tokens.
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
        available, requested = len(self.captions.lines), self.captions.requested
        if available >= requested:
            return None
        return (
            f"{self.captions.name} holds {counted(available, 'caption')}, size "
            f"{self.captions.size} needs {requested}: measured on {available - len(self.dropped)}"
        )

    @property
    def num_score_samples(self) -> int:
        """Number of captions that are scored."""
        return sum(len(batch.rows) for batch in self.scored)

    @property
    def scored_tokens(self) -> int:
        """Number of next-token predictions that the loss sums over: the score's denominator."""
        return sum(batch.num_predicted for batch in self.scored)

    @property
    def token_lengths(self) -> dict[int, int]:
        """Number of captions of each token length, shortest first."""
        lengths = Counter(len(row) for batch in self.batches for row in batch.rows)
        return dict(sorted(lengths.items()))

    def split(self, tokens: int) -> CalibrationData:
        """Return the same captions in batches of at most ``tokens`` tokens, one caption at least.

        Gradients of a summed loss do not depend on the batches, so neither do scores.
        """
        return replace(
            self,
            scored=tuple(part for batch in self.scored for part in batch.split(tokens)),
            unscored=tuple(part for batch in self.unscored for part in batch.split(tokens)),
        )


def calibration_data(
    captions: CaptionSet,
    token_ids: Sequence[Sequence[int]],
    *,
    batch_size: int,
    score_size: int,
) -> CalibrationData:
    """Group tokenized captions into batches of equal length.

    Args:
        token_ids: one row of token ids per caption of ``captions``, in the same order.
        batch_size: most captions in a batch.
        score_size: number of captions that are scored; the others only calibrate.

    Raises:
        CaptionError: no caption has at least ``MIN_TOKENS`` tokens.
    """
    usable = [i for i, row in enumerate(token_ids) if len(row) >= MIN_TOKENS]
    if not usable:
        raise CaptionError(
            f"{captions.name}: no caption has {MIN_TOKENS} tokens or more (captions read: "
            f"{len(captions.lines)}); give longer ones: a token is predicted from those before it"
        )
    rows = [tuple(token_ids[i]) for i in usable]
    kept = [captions.lines[i] for i in usable]
    return CalibrationData(
        captions=captions,
        scored=batches_of_equal_length(rows[:score_size], batch_size),
        unscored=batches_of_equal_length(rows[score_size:], batch_size),
        batch_size=batch_size,
        sha256=captions_digest(kept[:score_size], kept[score_size:]),
        dropped=tuple(line for i, line in enumerate(captions.lines) if i not in set(usable)),
    )


def batches_of_equal_length(rows: Sequence[tuple[int, ...]], batch_size: int) -> tuple[Batch, ...]:
    """Group rows by length, shortest first, at most ``batch_size`` to a batch.

    Rows of one length keep their order.
    """
    by_length: dict[int, list[tuple[int, ...]]] = {}
    for row in rows:
        by_length.setdefault(len(row), []).append(row)
    return tuple(
        Batch(rows=tuple(by_length[length][start : start + batch_size]))
        for length in sorted(by_length)
        for start in range(0, len(by_length[length]), batch_size)
    )


def captions_digest(scored: Sequence[str], unscored: Sequence[str]) -> str:
    """Return the sha256 of two sets of captions; the order within each set does not matter.

    Scores do not depend on that order either.
    """
    text = "\n".join([*sorted(scored), "", *sorted(unscored)])
    return hashlib.sha256(text.encode()).hexdigest()
