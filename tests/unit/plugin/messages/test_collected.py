"""Which collected tests are cases, on their way to the controller."""

from pytest_autoquant.plugin.messages.collected import CollectedCases

COLLECTED = CollectedCases(
    cases={"a.py::t[x]": "toy/p/g/small/gradient"},
    schemes={"a.py::t[größe]": "toy/schemes/mine/small"},
    others=("a.py::s[p-g]",),
    num_selected=7,
)


def test_collected_cases_read_back_as_they_were_sent():
    assert CollectedCases.load(COLLECTED.dump()) == COLLECTED
    assert CollectedCases.load(CollectedCases().dump()) == CollectedCases()


def test_case_ids_are_those_of_cases_and_schemes():
    assert COLLECTED.case_ids == {**COLLECTED.cases, **COLLECTED.schemes}
