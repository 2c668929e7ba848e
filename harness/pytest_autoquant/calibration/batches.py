"""Batches of tokenized captions.

Only captions of equal token length share a batch, so there is no padding: no pad token enters a
calibration statistic and no compute is spent on one.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from pytest_autoquant.calibration.captions import CaptionSet
from pytest_autoquant.errors import CaptionError
from pytest_autoquant.text import counted

#: Fewest tokens of a caption that can be used: one token to predict another from.
MIN_TOKENS = 2

#: Returns token ids per caption.
Tokenize = Callable[[tuple[str, ...]], Sequence[Sequence[int]]]


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
        dropped: captions left out because they have fewer than ``MIN_TOKENS`` tokens; the next
            ones of the file took their places.
        max_tokens: the length to which longer captions are cut; None for no limit.
        num_truncated: number of captions that are cut.
    """

    captions: CaptionSet
    scored: tuple[Batch, ...]
    unscored: tuple[Batch, ...]
    batch_size: int
    sha256: str
    dropped: tuple[str, ...]
    max_tokens: int | None = None
    num_truncated: int = 0

    @property
    def batches(self) -> tuple[Batch, ...]:
        """Every batch, scored ones first."""
        return self.scored + self.unscored

    @property
    def shortfall(self) -> str | None:
        """One sentence when the file holds fewer captions than the size needs, else None."""
        used, requested = self.num_captions, self.captions.requested
        if used == requested:
            return None
        return (
            f"{self.captions.name} holds {counted(len(self.captions.lines), 'caption')}, size "
            f"{self.captions.size} needs {requested}: measured on {used}"
        )

    @property
    def num_captions(self) -> int:
        """Number of captions that are used."""
        return sum(len(batch.rows) for batch in self.batches)

    @property
    def num_score_samples(self) -> int:
        """Number of captions that are scored."""
        return sum(len(batch.rows) for batch in self.scored)

    @property
    def replayed(self) -> tuple[Batch, ...]:
        """The scored batches in the order of replay: those of several captions first.

        On CUDA, ModelOpt quantizes the tokens of the two kinds with different code.
        """
        return tuple(sorted(self.scored, key=lambda batch: len(batch.rows) == 1))

    @property
    def replayed_captions(self) -> tuple[tuple[int, ...], ...]:
        """The token ids of every scored caption in the order of replay."""
        return tuple(row for batch in self.replayed for row in batch.rows)

    @property
    def by_digest(self) -> tuple[int, ...]:
        """Indices into ``replayed_captions`` by rising digest: an order that no batch changes."""
        digests = [caption_digest(row) for row in self.replayed_captions]
        return tuple(sorted(range(len(digests)), key=digests.__getitem__))

    @property
    def scored_digests(self) -> tuple[str, ...]:
        """Digests of the scored captions in the order of ``by_digest``."""
        return tuple(sorted(caption_digest(row) for row in self.replayed_captions))

    @property
    def scored_predictions(self) -> tuple[int, ...]:
        """Next-token predictions of each scored caption, in the order of ``by_digest``."""
        rows = self.replayed_captions
        return tuple(len(rows[index]) - 1 for index in self.by_digest)

    @property
    def num_duplicates(self) -> int:
        """Number of captions with the same tokens as an earlier one: they weigh it twice."""
        return self.num_captions - len({row for batch in self.batches for row in batch.rows})

    @property
    def scored_tokens(self) -> int:
        """Number of next-token predictions that the loss sums over: the score's denominator."""
        return sum(batch.num_predicted for batch in self.scored)

    @property
    def tokens_sha256(self) -> str:
        """Digest of the token ids, in the order of ``sha256``: another tokenizer changes it."""
        parts = [
            sorted(row for b in part for row in b.rows) for part in (self.scored, self.unscored)
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def token_lengths(self) -> dict[int, int]:
        """Number of captions of each token length, shortest first."""
        lengths = Counter(len(row) for batch in self.batches for row in batch.rows)
        return dict(sorted(lengths.items()))

    def scoring_first(self, count: int) -> CalibrationData:
        """Return the same captions with only the first ``count`` by digest scored.

        The others calibrate. ``sha256`` stays that of these captions as they were scored before.
        """
        first, captions = set(self.by_digest[:count]), enumerate(self.replayed_captions)
        parts: dict[bool, list[Batch]] = {True: [], False: []}
        for batch in self.replayed:
            rows: dict[bool, list[tuple[int, ...]]] = {True: [], False: []}
            for _ in batch.rows:
                index, row = next(captions)
                rows[index in first].append(row)
            for is_first, found in rows.items():
                parts[is_first] += [Batch(rows=tuple(found))] if found else []
        return replace(self, scored=tuple(parts[True]), unscored=(*parts[False], *self.unscored))

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
    tokenize: Tokenize,
    *,
    batch_size: int,
    score_size: int,
    max_tokens: int | None = None,
) -> CalibrationData:
    """Tokenize the first captions that are long enough, and group them by length into batches.

    Args:
        batch_size: most captions in a batch.
        score_size: number of captions that are scored; the others only calibrate.
        max_tokens: most tokens of a caption; longer ones are cut. None for no limit.

    Raises:
        CaptionError: no caption has at least ``MIN_TOKENS`` tokens.
    """
    used = _usable(captions, tokenize, max_tokens)
    if not used.rows:
        raise CaptionError(
            f"{captions.name}: no caption has {MIN_TOKENS} tokens or more (captions read: "
            f"{len(captions.lines)}); give longer ones: a token is predicted from those before it"
        )
    return CalibrationData(
        captions=captions,
        scored=batches_of_equal_length(used.rows[:score_size], batch_size),
        unscored=batches_of_equal_length(used.rows[score_size:], batch_size),
        batch_size=batch_size,
        sha256=captions_digest(used.lines[:score_size], used.lines[score_size:]),
        dropped=tuple(used.dropped),
        max_tokens=max_tokens,
        num_truncated=used.num_truncated,
    )


@dataclass(slots=True)
class _Usable:
    """The captions that are long enough, with their tokens, and those before that are not."""

    lines: list[str] = field(default_factory=list)
    rows: list[tuple[int, ...]] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    num_truncated: int = 0


def _usable(captions: CaptionSet, tokenize: Tokenize, max_tokens: int | None) -> _Usable:
    """Read captions until there are as many as the size asks for, or the file ends."""
    found = _Usable()
    for line, row in _tokenized(captions, tokenize):
        if len(found.rows) == captions.requested:
            break
        if len(row) < MIN_TOKENS:
            found.dropped.append(line)
        else:
            found.lines.append(line)
            found.rows.append(tuple(row[:max_tokens]))
            found.num_truncated += len(found.rows[-1]) < len(row)
    return found


def _tokenized(captions: CaptionSet, tokenize: Tokenize) -> Iterator[tuple[str, Sequence[int]]]:
    """Yield every caption with its tokens; a large file is tokenized only as far as it is read."""
    for start in range(0, len(captions.lines), captions.requested):
        lines = captions.lines[start : start + captions.requested]
        yield from zip(lines, tokenize(lines), strict=True)


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


def caption_digest(row: Sequence[int]) -> str:
    """Return the first 8 hexadecimal digits of a sha256 over a caption's token ids."""
    return hashlib.sha256(" ".join(map(str, row)).encode()).hexdigest()[:8]


def captions_digest(scored: Sequence[str], unscored: Sequence[str]) -> str:
    """Return the sha256 of two sets of captions; the order within each set does not matter.

    Scores do not depend on that order either.
    """
    text = "\n".join([*sorted(scored), "", *sorted(unscored)])
    return hashlib.sha256(text.encode()).hexdigest()
