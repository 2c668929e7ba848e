"""The assignment of cases to one shard and its workers."""

from pytest_autoquant.grid.assignment import Assignment
from pytest_autoquant.grid.case import cases
from pytest_autoquant.grid.vocabulary import load_vocabulary, select_vocabulary

VOCABULARY = select_vocabulary(load_vocabulary(), ["wfp8_afp8", "wint8_aint8"], ["default"])
SELECTED = tuple(cases(VOCABULARY, ("small", "large"), model="toy", method="gradient"))
SMALL_FP8, SMALL_INT8, LARGE_FP8, LARGE_INT8 = SELECTED


def test_batch_is_the_cases_of_one_size_and_part_in_order():
    parts = {SMALL_FP8.case_id: 0, SMALL_INT8.case_id: 0, LARGE_INT8.case_id: 0}
    assignment = Assignment(selected=SELECTED, parts=parts)
    assert [assignment.holds(case) for case in SELECTED] == [True, True, False, True]
    assert assignment.batch_of(SMALL_INT8) == (SMALL_FP8, SMALL_INT8)
    assert assignment.batch_of(LARGE_INT8) == (LARGE_INT8,)
    split = Assignment(selected=SELECTED, parts=parts | {SMALL_INT8.case_id: 1})
    assert split.batch_of(SMALL_FP8) == (SMALL_FP8,)
    assert split.batch_of(SMALL_INT8) == (SMALL_INT8,)
