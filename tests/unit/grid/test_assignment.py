"""The assignment of cases to one shard and its workers."""

from pytest_autoquant.grid.assignment import Assignment
from pytest_autoquant.grid.case import cases
from pytest_autoquant.grid.vocabulary import load_vocabulary, select_vocabulary

VOCABULARY = select_vocabulary(load_vocabulary(), ["wfp8_afp8", "wint8_aint8"], ["default"])
SMALL_FP8, SMALL_INT8, LARGE_FP8, LARGE_INT8 = SELECTED = tuple(
    cases(VOCABULARY, ("small", "large"), model="toy", method="gradient")
)


def test_shard_holds_the_cases_that_have_a_part():
    assignment = Assignment(selected=SELECTED, parts={SMALL_FP8.case_id: 0, LARGE_INT8.case_id: 1})
    assert [case for case in SELECTED if assignment.holds(case)] == [SMALL_FP8, LARGE_INT8]


def test_batch_is_the_cases_of_one_size_and_part_in_order():
    parts = dict.fromkeys((case.case_id for case in SELECTED), 0)
    one_part = Assignment(selected=SELECTED, parts=parts)
    assert one_part.batch_of(SMALL_INT8) == (SMALL_FP8, SMALL_INT8)
    assert one_part.batch_of(LARGE_FP8) == (LARGE_FP8, LARGE_INT8)
    two_parts = Assignment(selected=SELECTED, parts=parts | {LARGE_INT8.case_id: 1})
    assert two_parts.batch_of(LARGE_FP8) == (LARGE_FP8,)
    assert two_parts.batch_of(LARGE_INT8) == (LARGE_INT8,)


def test_batch_leaves_out_the_cases_of_other_shards():
    parts = {SMALL_FP8.case_id: 0}
    assert Assignment(selected=SELECTED, parts=parts).batch_of(SMALL_FP8) == (SMALL_FP8,)
