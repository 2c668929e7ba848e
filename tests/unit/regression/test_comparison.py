"""Comparison of two results, each measure by an example computed by hand."""

import math
from dataclasses import replace
from string import ascii_lowercase

import pytest
from pytest_autoquant.manifests.case_result import case_result_of
from pytest_autoquant.manifests.fingerprint import Difference
from pytest_autoquant.regression.comparison import GroupDrift
from pytest_autoquant.regression.comparison import compare as compare_sensitivities

MLP = "model.language_model.layers.0.mlp.gate_proj"
QKV = "model.language_model.layers.0.self_attn.q_proj"
BROKEN = math.inf


def compare(before, after):
    """Compare two manifests."""
    return compare_sensitivities(case_result_of(before), case_result_of(after))


def drifts(comparison):
    return {group.name: group.drift for group in comparison.groups}


def with_selection(manifest, **selected):
    """Return the manifest with ``selected`` set on layers named by their last part."""
    layers = {
        name: replace(layer, selected=selected.get(name.rpartition(".")[2], layer.selected))
        for name, layer in manifest.layers.items()
    }
    return replace(manifest, layers=layers)


def test_result_equals_itself(manifest):
    found = compare(manifest, manifest)
    assert [(group.rank_before, group.drift) for group in found.groups] == [(1, 0), (2, 0), (3, 0)]
    assert (found.spearman, found.top_ten, found.total_drift) == (1.0, 1.0, 0.0)
    assert found.new == found.vanished == found.selection_changes == found.differing == ()
    assert found.is_comparable


def test_group_has_scores_ranks_and_relative_drift(scored):
    found = compare(scored({"a": 4.0, "b": 2.0}), scored({"a": 5.0, "b": 8.0}))
    assert found.groups == (
        GroupDrift(name="b", before=2, after=8, rank_before=2, rank_after=1, drift=3.0),
        GroupDrift(name="a", before=4, after=5, rank_before=1, rank_after=2, drift=0.25),
    )


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"a": 4.0, "b": 2.0}, {"a": 1.0, "b": 2.0}, {"a": -0.75, "b": 0.0}),
        # The mean is 100, so scores below the floor of 1 drift relative to the floor.
        ({"a": 199.5, "b": 0.5}, {"a": 199.5, "b": 0.75}, {"a": 0.0, "b": 0.25}),
        ({"a": 198.0, "b": 2.0}, {"a": 198.0, "b": 1.0}, {"a": 0.0, "b": -0.5}),
        ({"a": 200.0, "b": 0.0}, {"a": 200.0, "b": 0.5}, {"a": 0.0, "b": 0.5}),
        ({"a": 0.0, "b": 0.0}, {"a": 0.0, "b": 1e-9}, {"a": 0.0, "b": math.inf}),
        # The mean of the finite scores is 50, so the floor is 0.5.
        (
            {"a": BROKEN, "b": 100.0, "c": 0.0},
            {"a": BROKEN, "b": 100.0, "c": 0.25},
            {"a": math.inf, "b": 0.0, "c": 0.5},
        ),
    ],
    ids=["negative", "below the floor", "above the floor", "zero", "zeros only", "not finite"],
)
def test_drift_is_relative_to_the_score_before_or_to_one_percent_of_the_mean(
    scored, before, after, expected
):
    assert drifts(compare(scored(before), scored(after))) == expected


@pytest.mark.parametrize("broken", [math.inf, math.nan])
@pytest.mark.parametrize(("before", "after"), [("broken", 1.0), (1.0, "broken"), ("broken",) * 2])
def test_score_that_is_not_finite_is_an_infinite_drift(scored, broken, before, after):
    first, second = (broken if score == "broken" else score for score in (before, after))
    found = compare(scored({"a": first, "b": 2.0}), scored({"a": second, "b": 2.0}))
    assert drifts(found) == {"a": math.inf, "b": 0.0}
    assert found.total_drift == math.inf
    (shown,) = [(group.before, group.after) for group in found.groups if group.name == "a"]
    assert shown == tuple(None if score == "broken" else score for score in (before, after))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((4.0, 4.0), (4.0, 5.0), 0.125),
        ((4.0, 4.0), (5.0, 3.0), 0.0),
        ((0.0, 0.0), (0.0, 1e-9), math.inf),
    ],
)
def test_total_drift_is_the_drift_of_the_sum(scored, before, after, expected):
    first, second = (scored(dict(zip("ab", side, strict=True))) for side in (before, after))
    assert compare(first, second).total_drift == expected


def test_results_without_groups_are_equal(scored):
    found = compare(scored({}), scored({}))
    assert (found.groups, found.spearman, found.top_ten, found.total_drift) == ((), 1.0, 1.0, 0.0)


def test_top_ten_is_the_share_that_stays(scored):
    before = {letter: 100.0 - i for i, letter in enumerate(ascii_lowercase[:12])}
    # The tenth and the eleventh change places, and so do the first two.
    swapped = before | {"j": before["k"], "k": before["j"], "a": before["b"], "b": before["a"]}
    assert compare(scored(before), scored(swapped)).top_ten == 0.9
    fewer = scored({"a": 3.0, "b": 2.0, "c": 1.0, "d": 0.5})
    assert compare(fewer, scored({"a": 1.0, "b": 2.0, "e": 3.0, "f": 4.0})).top_ten == 0.5


def test_groups_in_one_result_only_are_new_or_vanished(scored):
    found = compare(scored({"a": 1.0, "b": 2.0}), scored({"b": 2.0, "c": 3.0, "d": 4.0}))
    assert [group.name for group in found.groups] == ["b"]
    assert (found.new, found.vanished) == (("d", "c"), ("a",))


def test_results_without_common_groups_can_be_compared(scored):
    found = compare(scored({"a": 1.0}), scored({"b": 1.0}))
    assert (found.groups, found.top_ten, found.selection_changes) == ((), 0.0, ())
    assert (found.new, found.vanished) == (("b",), ("a",))


def test_changed_selection_of_a_group_is_listed(manifest):
    # Attention is kept at 16 bits; output and mlp are quantized.
    after = with_selection(manifest, o_proj=False, q_proj=True, k_proj=True, v_proj=True)
    found = compare(manifest, after).selection_changes
    assert sorted(found) == sorted((QKV, MLP.replace("mlp.gate", "self_attn.o")))


def test_partly_selected_group_counts_as_not_selected(manifest):
    assert compare(manifest, with_selection(manifest, q_proj=True)).selection_changes == ()
    changed = compare(manifest, with_selection(manifest, up_proj=False)).selection_changes
    assert changed == (MLP,)


def test_fingerprints_are_compared(manifest):
    after = replace(manifest, environment=replace(manifest.environment, torch="2.12.0"))
    assert compare(manifest, after).differing == (
        Difference(field="torch", before="2.11.0", after="2.12.0"),
    )


def test_worst_groups_have_the_largest_drifts_in_either_direction(scored):
    before = scored(dict.fromkeys("abcd", 1.0))
    found = compare(before, scored({"a": 1.5, "b": 0.1, "c": BROKEN, "d": 1.1}))
    assert [group.name for group in found.worst(3)] == ["c", "b", "a"]
    assert len(found.worst(10)) == 4


def test_largest_drift_is_that_of_the_worst_group(scored):
    before = scored(dict.fromkeys("abc", 1.0))
    assert compare(before, scored({"a": 1.5, "b": 0.25, "c": 1.0})).largest_drift == 0.75
    assert compare(scored({}), scored({})).largest_drift == 0.0


def test_groups_are_matched_by_the_end_of_their_names_and_said_so(case_of):
    scores = {"layers.0.a": 3.0, "layers.1.a": 2.0, "lm_head": 1.0, "layers.2.a": 1.0}
    longer = {f"model.language_model.{name}": score for name, score in scores.items()}
    longer.pop("model.language_model.layers.2.a")
    found = compare_sensitivities(case_of(scores), case_of({**longer, "visual.blocks.0.a": 4.0}))
    assert [(group.name, group.before, group.drift) for group in found.groups] == [
        ("model.language_model.layers.0.a", 3.0, 0.0),
        ("model.language_model.layers.1.a", 2.0, 0.0),
        ("model.language_model.lm_head", 1.0, 0.0),
    ]
    assert (found.new, found.vanished) == (("visual.blocks.0.a",), ("layers.2.a",))
    assert found.aligned[0] == ("layers.0.a", "model.language_model.layers.0.a")
    assert (found.spearman, found.top_ten) == (1.0, 0.75)
    assert compare_sensitivities(case_of(scores), case_of(scores)).aligned == ()
