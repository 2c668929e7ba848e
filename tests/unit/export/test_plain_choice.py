"""Schemes against uniform ones of at most the same bits, on the embedded model."""

from dataclasses import replace

import numpy as np
import pytest
from pytest_autoquant.allocation.scheme import allocation_of
from pytest_autoquant.calibration.captions import load_held_out
from pytest_autoquant.export.held_out import HeldOut
from pytest_autoquant.export.plain_choice import plain_choices
from pytest_autoquant.manifests.uncertainty import student_t
from scheme_model import choice_of, held_out_of, mine

INT4, FP8, INT8 = "wint4_afp16", "wfp8_afp8", "wint8_afp16"


@pytest.fixture(scope="module")
def decide(bench):
    """Return a choice among INT4, FP8 and INT8 by rule: a candidate's index for a group's index."""
    found = choice_of(bench, mine(INT4, FP8, INT8, amount=10.0))

    def of(rule):
        chosen = [rule(place) for place in range(len(found.groups))]
        return replace(found, allocation=allocation_of(found.groups, chosen))

    return of


@pytest.fixture
def compared(held):
    def compare(choice):
        def measure(formats):
            return held.damage("small", formats)

        damage = measure(choice.formats)
        return damage, plain_choices(choice, measure).compare(damage, held.data)

    return compare


def test_mix_that_measures_more_than_a_uniform_format_is_worse(decide, compared, held):
    """INT4 for half of the groups and 16 bits for the others stores more than 8 bits."""
    choice = decide(lambda place: 0 if place % 2 else None)
    assert choice.allocation.effective_bits > 8.1
    damage, found = compared(choice)
    assert set(found.kl) == {INT4, FP8, INT8}
    assert found.candidate == min(found.kl, key=found.kl.get) == INT8
    uniform = held.damage("small", decide(lambda place: 2).formats)
    assert (found.kl[INT8], found.effective_bits) == (
        uniform.kl,
        decide(lambda place: 2).allocation.effective_bits,
    )
    assert found.difference == damage.kl - uniform.kl > 0
    difference = np.array(damage.by_caption) - np.array(uniform.by_caption)
    tokens = np.array(damage.caption_predictions)
    left_out = (difference.sum() - difference) / (tokens.sum() - tokens)
    error = np.std(left_out) * np.sqrt(len(tokens) - 1)
    assert found.standard_error == pytest.approx(error, rel=1e-6)
    assert found.noise == pytest.approx(student_t(len(tokens) - 1) * error, rel=1e-3)
    assert found.difference > found.noise
    assert (found.verdict, found.not_compared) == ("worse", None)


def test_mix_that_measures_less_is_better_than_what_fits_into_its_bits(decide, compared):
    choice = decide(lambda place: 2 if place < 20 else 0)
    assert choice.allocation.effective_bits < 8
    _, found = compared(choice)
    assert list(found.kl) == [INT4]
    assert (found.candidate, found.verdict) == (INT4, "better")
    assert found.difference < -found.noise < 0


def test_scheme_that_is_the_best_uniform_one_says_so(decide, compared, held):
    damage, found = compared(decide(lambda place: 1))
    int4 = held.damage("small", decide(lambda place: 0).formats)
    assert found.kl == {INT4: int4.kl, FP8: damage.kl}  # INT8 has a scale per channel: more bits
    assert (found.candidate, found.verdict, found.difference) == (FP8, "same", 0.0)


def test_difference_within_the_noise_is_no_difference(bench, decide):
    """On three captions, one insensitive group in 16 bits instead of INT8 makes no difference."""
    lines = load_held_out(None).lines[:3]
    held = HeldOut(bench, held_out_of(*lines))
    choice = decide(lambda place: None if place == 9 else 2)
    damage = held.damage("small", choice.formats)
    plain = plain_choices(choice, lambda formats: held.damage("small", formats))
    found = plain.compare(damage, held.data)
    assert (found.candidate, found.verdict) == (INT8, "no difference")
    assert 0 < abs(found.difference) < found.noise


def test_no_uniform_scheme_fits_where_candidates_fit_different_groups(bench, decide, held):
    """INT4 fits the first half only and FP8 the second half only."""
    choice = decide(lambda place: 0)
    half = len(choice.groups) // 2
    groups = tuple(
        replace(group, left_out=frozenset({1, 2} if place < half else {0, 2}))
        for place, group in enumerate(choice.groups)
    )
    chosen = [0 if place < half else 1 for place in range(len(groups))]
    mixed = replace(choice, groups=groups, allocation=allocation_of(groups, chosen))
    plain = plain_choices(mixed, lambda formats: pytest.fail("nothing fits"))
    found = plain.compare(held.damage("small", mixed.formats), held.data)
    assert (found.kl, found.candidate, found.verdict) == ({}, None, None)
    assert found.not_compared.startswith("no uniform scheme of its candidates fits into the scheme")
    least = min(plain.bits.values())
    assert least > mixed.allocation.effective_bits


def test_uniform_scheme_without_a_finite_divergence_is_not_compared(decide, held):
    choice = decide(lambda place: 2 if place < 20 else 0)
    damage = held.damage("small", choice.formats)
    plain = plain_choices(choice, lambda formats: replace(damage, kl=float("nan")))
    found = plain.compare(damage, held.data)
    assert (found.kl, found.verdict) == ({INT4: None}, None)
    assert found.not_compared == f"the KL divergence of uniform {INT4} is not finite"


def test_uniform_scheme_that_cannot_be_measured_costs_no_scheme(decide, held):
    def fails(formats):
        raise KeyError("no kernel")

    choice = decide(lambda place: 2 if place < 20 else 0)
    damage = held.damage("small", choice.formats)
    found = plain_choices(choice, fails).compare(damage, held.data)
    assert (found.kl, found.verdict) == ({INT4: None}, None)
    assert found.not_compared == f"uniform {INT4}: KeyError: 'no kernel'"
