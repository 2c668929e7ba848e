"""Rank correlations between the sizes of a case."""

from dataclasses import replace

import pytest
from builders import results_of
from pytest_autoquant.calibration.sizes import SIZES
from pytest_autoquant.manifests.case_result import ScoredCaptions
from pytest_autoquant.reports.charts.size_stability import stability


def found_in(*cases):
    return list(stability(results_of(*cases)))


@pytest.fixture(scope="session")
def sized(case_of):
    """A case of this size that scores its groups like this, in module order."""

    def build(size, scores, **given):
        return case_of({f"g{i}": score for i, score in enumerate(scores)}, size=size, **given)

    return build


@pytest.mark.parametrize(
    ("small", "large", "expected"),
    [
        ([4, 3, 2, 1], [40, 30, 20, 10], 1.0),
        ([4, 3, 2, 1], [1, 2, 3, 4], -1.0),
        ([4, 3, 2, 1], [3, 4, 2, 1], 0.8),
        ([1, 1, 1], [1, 1, 1], 1.0),
        ([1, 1, 1], [1, 2, 3], 0.0),
        ([None, 2, 1], [3, 2, 1], 1.0),
        ([None, 2, 1], [0.5, 2, 1], -0.5),
        ([None, None, 1], [3, 3, 1], 1.0),
    ],
)
def test_known_orders_have_their_known_correlation(sized, small, large, expected):
    (point,) = found_in(sized("small", small), sized("large", large))
    assert point.spearman == pytest.approx(expected)


def test_every_two_sizes_are_compared_the_smaller_one_first(sized):
    points = found_in(*(sized(size, [1, 2]) for size in ("odd", "large", "small", "medium")))
    assert [point.sizes for point in points] == [
        "small and medium",
        "small and large",
        "small and odd",
        "medium and large",
        "medium and odd",
        "large and odd",
    ]


def test_point_has_a_description_and_opens_the_larger_case(sized):
    (point,) = found_in(sized("small", [3, 2, 1]), sized("medium", [3, 1, 2]))
    assert (point.model, point.method) == ("toy", "gradient")
    assert (point.pair, point.granularity) == ("wint4_aint8", "default")
    assert point.case == "toy/wint4_aint8/default/medium/gradient"
    assert point.detail == (
        "wint4_aint8, default: 0.5000 between small and medium, it is unknown which captions both "
        "scored"
    )


@pytest.mark.parametrize(
    ("small", "large", "captions"),
    [
        ((16, "ab"), (128, "abcd"), "2 scored captions in common (16 and 128)"),
        ((2, "ab"), (2, "ba"), "the same 2 captions scored"),
        ((2, "aa"), (2, "ab"), "1 scored caption in common (2 and 2)"),
        ((2, "ab"), (2, "cd"), "no scored caption in common (2 and 2)"),
        ((16, ""), (128, "abcd"), "16 scored captions in common (16 and 128)"),
        ((128, ""), (128, ""), "the same 128 captions scored"),
        ((None, ""), (128, "ab"), "it is unknown which captions both scored"),
    ],
)
def test_point_says_which_captions_both_sizes_scored(sized, small, large, captions):
    scored = [ScoredCaptions(name="f", count=n, digests=tuple(d)) for n, d in (small, large)]
    cases = [sized(size, [2, 1], scored=s) for size, s in zip(SIZES, scored, strict=False)]
    (point,) = found_in(*cases)
    assert point.captions == captions


def test_sizes_that_hold_the_same_captions_are_not_compared(sized):
    cases = [sized(size, [2, 1]) for size in ("small", "large")]
    same = [
        replace(case, source=replace(case.source, fingerprint=cases[0].fingerprint))
        for case in cases
    ]
    assert found_in(*same) == []


@pytest.mark.parametrize(
    "other",
    [
        {"model": "m"},
        {"method": "kl_div"},
        {"pair": "p"},
        {"granularity": "g"},
        {"status": "alias"},
        {"status": "failed"},
        {"scores": [1]},
    ],
    ids=str,
)
def test_only_measured_sizes_of_the_same_case_with_common_groups_are_compared(sized, other):
    assert found_in(sized("small", [1, 2]), sized("large", **{"scores": [1, 2]} | other)) == []


def test_sizes_that_hold_the_same_captions_say_nothing(sized):
    small = sized("small", [1, 2])
    assert found_in(small, sized("large", scores=[1, 2], fingerprint=small.fingerprint)) == []


def test_only_groups_in_both_are_compared(case_of):
    small = case_of({"a": 3.0, "gone": 9.0, "b": 2.0, "c": 1.0}, size="small")
    large = case_of({"a": 3.0, "b": 1.0, "new": 9.0, "c": 2.0}, size="large")
    (point,) = found_in(small, large)
    assert point.spearman == 0.5
