"""Damage of an applied scheme, compared with two forward passes computed by hand."""

import numpy as np
import pytest
from pytest_autoquant.calibration.batches import caption_digest, captions_digest
from pytest_autoquant.export.apply_scheme import applied
from pytest_autoquant.export.damage import _bypassed, measure_damage
from scheme_model import MIXTURE, logits_of, quantizers


def log_softmax(logits):
    logits = logits.astype(np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def by_hand(plain, quantized, batches):
    """The same quantities in numpy, from logits ``(captions, tokens - 1, vocabulary)``."""
    kl, loss, before, same, captions = [], [], [], [], []
    for a, b, batch in zip(plain, quantized, batches, strict=True):
        p, q = log_softmax(a), log_softmax(b)
        divergences = (np.exp(p) * (p - q)).sum(-1)
        kl.append(divergences.ravel())
        captions += zip(map(caption_digest, batch.rows), divergences.sum(-1), strict=True)
        for i, row in enumerate(batch.rows):
            loss += [-q[i, t, token] for t, token in enumerate(row[1:])]
            before += [-p[i, t, token] for t, token in enumerate(row[1:])]
        same.append((a.argmax(-1) == b.argmax(-1)).ravel())
    agreement = np.concatenate(same).mean()
    by_caption = [divergence for _, divergence in sorted(captions)]
    means = np.concatenate(kl).mean(), np.mean(loss), np.mean(before), agreement
    return *means, len(loss), by_caption


def test_damage_equals_two_forward_passes(tiny, calibration, held_out, held_out_batches):
    plain = logits_of(tiny, held_out_batches)
    one_by_one = [part for batch in held_out_batches for part in batch.split(1)]
    with applied(tiny, MIXTURE, calibration):
        quantized = logits_of(tiny, held_out_batches)
        damage = measure_damage(tiny, held_out, held_out_batches)
        alone = measure_damage(tiny, held_out, one_by_one)
    kl, loss, before, agreement, count, by_caption = by_hand(plain, quantized, held_out_batches)
    assert 1e-5 < kl < 1
    assert damage.kl == pytest.approx(kl, rel=1e-9)
    assert damage.by_caption == pytest.approx(by_caption, rel=1e-6)
    left_out = [
        (sum(by_caption) - one) / (count - tokens)
        for one, tokens in zip(by_caption, damage.caption_predictions, strict=True)
    ]
    error = np.std(left_out) * np.sqrt(len(left_out) - 1)
    assert damage.standard_error == pytest.approx(error, rel=1e-6)
    assert damage.loss == pytest.approx(loss, rel=1e-12)
    assert damage.loss_before == pytest.approx(before, rel=1e-12)
    assert damage.agreement == pytest.approx(agreement, rel=1e-12)
    assert 0.5 < damage.agreement < 1
    assert (damage.num_tokens, damage.captions) == (count, held_out.name)
    assert damage.sha256 == captions_digest(held_out.lines, ())
    assert alone.kl == pytest.approx(damage.kl, rel=1e-3)
    assert alone.by_caption == pytest.approx(damage.by_caption, rel=1e-2)
    assert alone.loss == pytest.approx(damage.loss, rel=1e-6)


def test_unquantized_model_has_no_damage(tiny, calibration, held_out, held_out_batches):
    with applied(tiny, (), calibration):
        damage = measure_damage(tiny, held_out, held_out_batches)
    assert (damage.kl, damage.agreement) == (0.0, 1.0)
    assert damage.loss == damage.loss_before


def states(module):
    return {name: quantizer.is_enabled for name, quantizer in quantizers(module).items()}


def test_bypassed_quantizers_are_switched_on_again(tiny, calibration, held_out_batches):
    plain = logits_of(tiny, held_out_batches[:1])[0]
    with applied(tiny, MIXTURE, calibration):
        before = states(tiny.module)
        with _bypassed(tiny.module):
            assert not any(states(tiny.module).values())
            assert np.array_equal(logits_of(tiny, held_out_batches[:1])[0], plain)
        assert states(tiny.module) == before
        with pytest.raises(ZeroDivisionError), _bypassed(tiny.module):
            raise ZeroDivisionError
        assert states(tiny.module) == before
