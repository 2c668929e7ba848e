"""Comparison of two results, each measure by an example computed by hand."""

import math
from dataclasses import replace
from string import ascii_lowercase

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pytest_autoquant.manifests.case_result import case_result_of
from pytest_autoquant.manifests.fingerprint import Difference
from pytest_autoquant.regression.comparison import GroupDrift, spearman
from pytest_autoquant.regression.comparison import compare as compare_sensitivities
from scipy.stats import rankdata, spearmanr

MLP = "model.language_model.layers.0.mlp.gate_proj"
QKV = "model.language_model.layers.0.self_attn.q_proj"
BROKEN = math.inf

scores = st.floats(0, 1e6, allow_subnormal=False)


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


def test_group_has_scores_ranks_and_relative_drift(scored):
    found = compare(scored({"a": 4.0, "b": 2.0}), scored({"a": 5.0, "b": 8.0}))
    assert found.groups == (
        GroupDrift(name="b", before=2, after=8, rank_before=2, rank_after=1, drift=3.0),
        GroupDrift(name="a", before=4, after=5, rank_before=1, rank_after=2, drift=0.25),
    )


def test_lower_score_is_a_negative_drift(scored):
    found = compare(scored({"a": 4.0, "b": 2.0}), scored({"a": 1.0, "b": 2.0}))
    assert drifts(found) == {"a": -0.75, "b": 0.0}


def test_group_below_one_percent_of_the_mean_drifts_relative_to_that(scored):
    # The mean is 100, so the floor is 1.
    before = scored({"large": 199.5, "small": 0.5})
    assert drifts(compare(before, scored({"large": 199.5, "small": 0.8})))["small"] == (
        pytest.approx(0.3)
    )


def test_group_above_the_floor_drifts_relative_to_its_own_score(scored):
    before = scored({"large": 198.0, "small": 2.0})
    assert drifts(compare(before, scored({"large": 198.0, "small": 1.0})))["small"] == -0.5


def test_score_of_zero_drifts_relative_to_the_floor(scored):
    before = scored({"large": 200.0, "none": 0.0})
    assert drifts(compare(before, scored({"large": 200.0, "none": 0.5})))["none"] == 0.5


def test_any_score_after_zeros_only_is_an_infinite_drift(scored):
    found = compare(scored({"a": 0.0, "b": 0.0}), scored({"a": 0.0, "b": 1e-9}))
    assert drifts(found) == {"a": 0.0, "b": math.inf}
    assert found.total_drift == math.inf


@pytest.mark.parametrize("broken", [math.inf, math.nan])
@pytest.mark.parametrize(("before", "after"), [("broken", 1.0), (1.0, "broken"), ("broken",) * 2])
def test_score_that_is_not_finite_is_an_infinite_drift(scored, broken, before, after):
    first, second = (broken if score == "broken" else score for score in (before, after))
    found = compare(scored({"a": first, "b": 2.0}), scored({"a": second, "b": 2.0}))
    assert drifts(found) == {"a": math.inf, "b": 0.0}
    assert found.total_drift == math.inf
    (shown,) = [(group.before, group.after) for group in found.groups if group.name == "a"]
    assert shown == tuple(None if score == "broken" else score for score in (before, after))


def test_scores_that_are_not_finite_are_left_out_of_the_mean(scored):
    # The mean of the finite scores is 50, so the floor is 0.5.
    before = scored({"broken": BROKEN, "large": 100.0, "none": 0.0})
    after = scored({"broken": BROKEN, "large": 100.0, "none": 0.25})
    assert drifts(compare(before, after))["none"] == 0.5


def test_total_drift_is_the_drift_of_the_sum(scored):
    assert compare(scored({"a": 4.0, "b": 4.0}), scored({"a": 4.0, "b": 5.0})).total_drift == 0.125
    assert compare(scored({"a": 4.0, "b": 4.0}), scored({"a": 5.0, "b": 3.0})).total_drift == 0


def test_rank_correlation_of_swapped_neighbours(scored):
    # 1 - 6 * sum(d^2) / (n * (n^2 - 1)), with d = 1, -1, 0, 0.
    before = scored({"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0})
    after = scored({"a": 3.0, "b": 40.0, "c": 2.0, "d": 1.0})
    assert compare(before, after).spearman == pytest.approx(1 - 6 * 2 / (4 * 15))


def test_rank_correlation_of_the_reverse_order_is_minus_one(scored):
    before, after = scored({"a": 3.0, "b": 2.0, "c": 1.0}), scored({"a": 1.0, "b": 5.0, "c": 9.0})
    assert compare(before, after).spearman == pytest.approx(-1)


def test_score_that_is_not_finite_ranks_above_all_others(scored):
    # Ranks 1, 2, 3 become 3, 1, 2: d = 2, -1, -1.
    before = scored({"a": BROKEN, "b": 2.0, "c": 1.0})
    after = scored({"a": 0.5, "b": 2.0, "c": 1.0})
    assert compare(before, after).spearman == pytest.approx(1 - 6 * 6 / (3 * 8))


def test_rank_correlation_of_the_same_order_is_exactly_one(scored):
    """Else no case could meet ``--aq-tol-spearman 1``."""
    found = {}
    for count in range(2, 40):
        before = scored({f"g{i}": 1.0 + i for i in range(count)})
        after = scored({f"g{i}": 3.7 * (1 + i) ** 2 for i in range(count)})
        found[count] = compare(before, after).spearman
    assert found == dict.fromkeys(range(2, 40), 1.0)


@pytest.mark.filterwarnings("error")
def test_rank_correlation_with_ties_only_is_zero_without_a_warning(scored):
    assert compare(scored({"a": 1.0, "b": 1.0}), scored({"a": 1.0, "b": 2.0})).spearman == 0


def test_ties_only_on_both_sides_are_the_same_order(scored):
    same = scored({"a": 1.0, "b": 1.0, "c": 1.0})
    assert compare(same, same).spearman == 1


@pytest.mark.parametrize("after", [0.0, 5.0, BROKEN])
def test_single_group_keeps_its_order(scored, after):
    assert compare(scored({"a": 1.0}), scored({"a": after})).spearman == 1


def test_results_without_groups_are_equal(scored):
    found = compare(scored({}), scored({}))
    assert (found.groups, found.spearman, found.top_ten, found.total_drift) == ((), 1.0, 1.0, 0.0)


def test_top_ten_is_the_share_that_stays(scored):
    before = {letter: 100.0 - i for i, letter in enumerate(ascii_lowercase[:12])}
    # The tenth and the eleventh change places, and so do the first two.
    swapped = before | {"j": before["k"], "k": before["j"], "a": before["b"], "b": before["a"]}
    assert compare(scored(before), scored(swapped)).top_ten == 0.9


def test_top_ten_of_fewer_groups_is_the_share_of_those(scored):
    before = scored({"a": 3.0, "b": 2.0, "c": 1.0, "d": 0.5})
    assert compare(before, scored({"a": 1.0, "b": 2.0, "e": 3.0, "f": 4.0})).top_ten == 0.5


def test_groups_in_one_result_only_are_new_or_vanished(scored):
    found = compare(scored({"a": 1.0, "b": 2.0}), scored({"b": 2.0, "c": 3.0, "d": 4.0}))
    assert [group.name for group in found.groups] == ["b"]
    assert (found.new, found.vanished) == (("d", "c"), ("a",))


def test_results_without_common_groups_can_be_compared(scored):
    found = compare(scored({"a": 1.0}), scored({"b": 1.0}))
    assert (found.groups, found.top_ten) == ((), 0.0)
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


def test_new_groups_are_not_selection_changes(scored):
    assert compare(scored({"a": 1.0}), scored({"a": 1.0, "b": 2.0})).selection_changes == ()


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


@settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(pairs=st.lists(st.tuples(scores, scores), min_size=2, max_size=15))
@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_shares_and_correlations_stay_in_range(scored, pairs):
    before, after = ({f"g{i}": pair[side] for i, pair in enumerate(pairs)} for side in (0, 1))
    found = compare(scored(before), scored(after))
    assert -1 - 1e-9 <= found.spearman <= 1 + 1e-9
    assert 0 <= found.top_ten <= 1
    assert all(not math.isnan(group.drift) for group in found.groups)
    assert all((group.drift == 0) == (group.before == group.after) for group in found.groups)


def test_largest_drift_is_that_of_the_worst_group(scored):
    before = scored(dict.fromkeys("abc", 1.0))
    assert compare(before, scored({"a": 1.5, "b": 0.25, "c": 1.0})).largest_drift == 0.75
    assert compare(before, scored({"a": 1.5, "b": BROKEN, "c": 1.0})).largest_drift == math.inf
    assert compare(scored({}), scored({})).largest_drift == 0.0


def test_results_of_this_harness_are_comparable(manifest):
    assert compare(manifest, manifest).is_comparable


@settings(deadline=None, max_examples=200)
@given(
    pairs=st.lists(
        st.tuples(st.none() | scores | st.sampled_from([1.0, 2.0]), st.none() | scores),
        min_size=2,
        max_size=15,
    )
)
def test_rank_correlation_equals_scipy(pairs):
    before, after = (
        [math.inf if pair[side] is None else pair[side] for pair in pairs] for side in (0, 1)
    )
    if len(set(before)) > 1 and len(set(after)) > 1:
        expected = spearmanr(rankdata(before), rankdata(after)).statistic
        assert spearman(pairs) == pytest.approx(expected, abs=1e-12)
    else:
        assert spearman(pairs) == (len(set(before)) == len(set(after)))
