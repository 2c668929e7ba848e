"""Scores compared with those of stock AutoQuant."""

import pytest
from builders import ignore_progress
from pytest_autoquant.scoring.stock.engine import StockEngine

#: Largest relative difference of a group's score, by the model's dtype.
TOLERANCE = {"float32": 1e-6, "bfloat16": 1e-3}


def assert_parity(model, config, replayed, data):
    """Compare every group with stock; return the largest relative difference."""
    engine = StockEngine(model, method="gradient")
    (stock,) = engine.score([config], data, ignore_progress).values()
    assert [g.modules for g in replayed.groups] == [g.modules for g in stock.groups]
    pairs = list(zip(replayed.groups, stock.groups, strict=True))
    for ours, theirs in pairs:
        tolerance = TOLERANCE[model.record.dtype]
        assert ours.score == pytest.approx(theirs.score, rel=tolerance), ours.name
    return max(abs(a.score - b.score) / b.score for a, b in pairs if b.score)
