"""Which worker runs which test, on workers that run what they are sent without a process."""

from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace

from hypothesis import given, settings
from hypothesis import strategies as st
from pytest_autoquant.plugin.xdist_scheduling import Scheduling


@dataclass(eq=False)
class Worker:
    """An xdist worker: it runs what it was sent in order, but the last only when told to stop."""

    name: str
    shutting_down: bool = False
    sent: list[int] = field(default_factory=list)
    ran: list[int] = field(default_factory=list)

    def __post_init__(self):
        self.gateway = SimpleNamespace(id=self.name)

    def send_runtest_some(self, indices):
        self.sent += indices

    def shutdown(self):
        self.shutting_down = True

    @property
    def can_run(self):
        """Whether it has a test to run: it keeps one back to know what comes next."""
        return len(self.sent) - len(self.ran) >= (1 if self.shutting_down else 2)


SILENT = SimpleNamespace(loadscopesched=lambda *_: None, loadsched=lambda *_: None)


class Config:
    """As much of pytest's config as the scheduler asks for."""

    option = SimpleNamespace(loadscopereorder=True)

    def __init__(self, workers):
        self._tx = ["popen"] * workers

    def getoption(self, name):
        return None

    def getvalue(self, name):
        return {"tx": self._tx, "maxschedchunk": None}[name]


class Run:
    """A run of a collection on workers, as xdist's controller drives it."""

    def __init__(self, collection, parts, workers):
        self.asked = []

        def parts_of(node_ids, count):
            self.asked.append((list(node_ids), count))
            return parts

        self.collection = list(collection)
        self.scheduler = Scheduling(Config(workers), SILENT, parts_of)
        self.workers = [Worker(f"gw{i}") for i in range(workers)]
        for worker in self.workers:
            self.scheduler.add_node(worker)
        for worker in self.workers:
            self.scheduler.add_node_collection(worker, self.collection)
        self.scheduler.schedule()

    def start_next(self, worker):
        """Let a worker begin a test; returns the test."""
        worker.ran.append(worker.sent[len(worker.ran)])
        return self.collection[worker.ran[-1]]

    def step(self, worker):
        """Let a worker run a test and report it."""
        self.start_next(worker)
        self.scheduler.mark_test_complete(worker, worker.ran[-1])

    def crash(self, worker):
        """Let a worker die, and put another in its place; returns the test that is given up."""
        self.workers.remove(worker)
        given_up = self.scheduler.remove_node(worker)
        new = Worker(f"{worker.name}'")
        self.workers.append(new)
        self.scheduler.add_node(new)
        self.scheduler.add_node_collection(new, self.collection)
        self.scheduler.schedule()
        return given_up

    def finish(self):
        """Let the workers take turns until nothing is left to run."""
        while self.scheduler.has_pending:
            ready = [worker for worker in self.workers if worker.can_run]
            if not ready:
                assert self.scheduler.tests_finished
                for worker in self.workers:
                    worker.shutdown()
                continue
            self.step(ready[0])

    def tests_of(self, worker):
        return [self.collection[index] for index in worker.ran]


CASES = {f"test_case[{part}-{i}]": part for i in range(4) for part in range(3)}


def test_each_part_goes_to_one_worker_and_different_parts_to_different_ones():
    run = Run(CASES, CASES, workers=3)
    run.finish()
    done = [run.tests_of(worker) for worker in run.workers]
    assert [len(tests) for tests in done] == [4, 4, 4]
    assert [{CASES[test] for test in tests} for tests in done] == [{0}, {1}, {2}]


def test_the_cases_of_a_part_run_in_the_order_of_collection():
    run = Run(CASES, CASES, workers=3)
    run.finish()
    assert run.tests_of(run.workers[1]) == [test for test, part in CASES.items() if part == 1]


def test_the_parts_are_asked_for_once_with_all_tests_and_the_number_of_workers():
    run = Run([*CASES, "test_other"], CASES, workers=3)
    run.finish()
    assert run.asked == [([*CASES, "test_other"], 3)]


def test_other_tests_are_handed_out_one_by_one():
    others = [f"test_other.py::test_{i}" for i in range(12)]
    run = Run(others, {}, workers=3)
    # At first every worker gets two of them, as one is always kept back.
    assert [len(worker.sent) for worker in run.workers] == [2, 2, 2]
    run.finish()
    assert sorted(test for worker in run.workers for test in run.tests_of(worker)) == sorted(others)


def test_every_test_runs_once_where_cases_and_others_are_mixed():
    tests = [*CASES, *(f"test_other.py::test_{i}" for i in range(7))]
    run = Run(tests, CASES, workers=2)
    run.finish()
    assert Counter(test for worker in run.workers for test in run.tests_of(worker)) == (
        Counter(tests)
    )


def test_workers_without_a_part_are_sent_home():
    run = Run(CASES, dict.fromkeys(CASES, 0), workers=3)
    assert [worker.shutting_down for worker in run.workers] == [True, True, True]
    assert [len(worker.sent) for worker in run.workers] == [12, 0, 0]


def test_the_test_that_a_worker_died_on_is_given_up_and_the_rest_of_its_part_runs():
    run = Run(CASES, CASES, workers=3)
    victim = run.workers[0]
    run.step(victim)
    fatal = run.start_next(victim)
    assert run.crash(victim) == fatal == "test_case[0-1]"
    run.finish()
    after = [test for worker in run.workers for test in run.tests_of(worker)]
    assert [test for test in after if CASES[test] == 0] == ["test_case[0-2]", "test_case[0-3]"]


def test_what_a_dead_worker_left_stays_together():
    run = Run(CASES, CASES, workers=3)
    run.start_next(run.workers[1])
    run.crash(run.workers[1])
    run.finish()
    holders = [w for w in run.workers if any(CASES[test] == 1 for test in run.tests_of(w))]
    assert [run.tests_of(worker) for worker in holders] == [
        ["test_case[1-1]", "test_case[1-2]", "test_case[1-3]"]
    ]


def test_a_worker_that_dies_on_its_last_test_leaves_nothing():
    run = Run(["a", "b"], {"a": 0, "b": 1}, workers=2)
    run.start_next(run.workers[0])
    assert run.crash(run.workers[0]) == "a"
    run.finish()
    assert [run.tests_of(worker) for worker in run.workers] == [["b"], []]


def test_a_worker_that_has_finished_is_removed_without_a_crash():
    run = Run(CASES, CASES, workers=3)
    run.finish()
    assert [run.scheduler.remove_node(worker) for worker in run.workers] == [None] * 3


def test_a_test_that_kills_every_worker_is_still_given_up_only_once():
    run = Run(CASES, dict.fromkeys(CASES, 0), workers=1)
    for expected in list(CASES)[:3]:
        run.start_next(run.workers[0])
        assert run.crash(run.workers[0]) == expected
    run.finish()
    assert run.tests_of(run.workers[0]) == list(CASES)[3:]


def test_a_worker_in_place_of_a_dead_one_gets_more_than_the_one_test_it_keeps_back():
    run = Run(["a", "b", "c"], {}, workers=1)
    run.start_next(run.workers[0])
    run.crash(run.workers[0])
    assert len(run.workers[0].sent) == 2


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_whoever_dies_every_test_runs_once_and_none_that_was_running_runs_again(data):
    parts = data.draw(st.lists(st.none() | st.integers(0, 3), min_size=1, max_size=20))
    collection = [f"test_{i}" for i in range(len(parts))]
    run = Run(
        collection,
        {test: part for test, part in zip(collection, parts, strict=True) if part is not None},
        workers=data.draw(st.integers(1, 4)),
    )
    started = Counter()
    for _ in range(data.draw(st.integers(0, 30))):
        ready = [worker for worker in run.workers if worker.can_run]
        if not ready:
            break
        worker = data.draw(st.sampled_from(ready))
        if data.draw(st.integers(0, 3)):
            run.step(worker)
            continue
        fatal = run.start_next(worker)
        started.update(run.tests_of(worker))
        assert run.crash(worker) == fatal
    run.finish()
    for worker in run.workers:
        started.update(run.tests_of(worker))
    assert started == Counter(collection)
