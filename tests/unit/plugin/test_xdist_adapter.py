"""What the plugin needs of xdist: scheduling by part, and data from a worker before tests run.

Scheduling is driven on workers that run what they are sent without a process; xdist's scheduler is
the real one.
"""

import inspect
import warnings
from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest_autoquant.plugin.messages.collected import CollectedCases
from pytest_autoquant.plugin.xdist_adapter import (
    CollectedAnnouncement,
    Scheduling,
    announce,
    announced,
)
from xdist.dsession import DSession
from xdist.remote import WorkerInteractor
from xdist.scheduler import LoadScheduling, LoadScopeScheduling
from xdist.workermanage import WorkerController

COLLECTED = CollectedCases(
    cases={"a.py::t[größe]": "toy/p/g/small/gradient"},
    others=("a.py::s",),
    num_selected=2,
)


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
        self.calls = []

        def parts_of(node_ids, count):
            self.calls.append((list(node_ids), count))
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
        """Let a worker die, and put another in its place; returns the test that it crashed on."""
        self.workers.remove(worker)
        crashed = self.scheduler.remove_node(worker)
        new = Worker(f"{worker.name}'")
        self.workers.append(new)
        self.scheduler.add_node(new)
        self.scheduler.add_node_collection(new, self.collection)
        self.scheduler.schedule()
        return crashed

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


def test_each_part_runs_on_one_worker_of_its_own():
    run = Run(CASES, CASES, workers=3)
    run.finish()
    done = [run.tests_of(worker) for worker in run.workers]
    assert [len(tests) for tests in done] == [4, 4, 4]
    assert [{CASES[test] for test in tests} for tests in done] == [{0}, {1}, {2}]


def test_cases_of_a_part_run_in_the_order_of_collection():
    run = Run(CASES, CASES, workers=3)
    run.finish()
    assert run.tests_of(run.workers[1]) == [test for test, part in CASES.items() if part == 1]


def test_parts_are_computed_once_from_all_tests_and_the_number_of_workers():
    run = Run([*CASES, "test_other"], CASES, workers=3)
    run.finish()
    assert run.calls == [([*CASES, "test_other"], 3)]


def test_tests_that_are_no_cases_are_dealt_one_by_one():
    others = [f"test_other.py::test_{i}" for i in range(12)]
    run = Run(others, {}, workers=3)
    # At first every worker gets two of them, as one is always kept back.
    assert [len(worker.sent) for worker in run.workers] == [2, 2, 2]
    run.finish()
    assert sorted(test for worker in run.workers for test in run.tests_of(worker)) == sorted(others)


def test_cases_and_other_tests_run_once_each():
    tests = [*CASES, *(f"test_other.py::test_{i}" for i in range(7))]
    run = Run(tests, CASES, workers=2)
    run.finish()
    assert Counter(test for worker in run.workers for test in run.tests_of(worker)) == (
        Counter(tests)
    )


def test_workers_without_a_part_are_shut_down():
    run = Run(CASES, dict.fromkeys(CASES, 0), workers=3)
    assert [worker.shutting_down for worker in run.workers] == [True, True, True]
    assert [len(worker.sent) for worker in run.workers] == [12, 0, 0]


def test_rest_of_a_part_runs_after_the_test_that_killed_its_worker():
    run = Run(CASES, CASES, workers=3)
    victim = run.workers[0]
    run.step(victim)
    fatal = run.start_next(victim)
    assert run.crash(victim) == fatal == "test_case[0-1]"
    run.finish()
    after = [test for worker in run.workers for test in run.tests_of(worker)]
    assert [test for test in after if CASES[test] == 0] == ["test_case[0-2]", "test_case[0-3]"]


def test_rest_of_a_part_stays_on_one_worker():
    run = Run(CASES, CASES, workers=3)
    run.start_next(run.workers[1])
    run.crash(run.workers[1])
    run.finish()
    holders = [w for w in run.workers if any(CASES[test] == 1 for test in run.tests_of(w))]
    assert [run.tests_of(worker) for worker in holders] == [
        ["test_case[1-1]", "test_case[1-2]", "test_case[1-3]"]
    ]


def test_worker_that_dies_on_its_last_test_leaves_nothing():
    run = Run(["a", "b"], {"a": 0, "b": 1}, workers=2)
    run.start_next(run.workers[0])
    assert run.crash(run.workers[0]) == "a"
    run.finish()
    assert [run.tests_of(worker) for worker in run.workers] == [["b"], []]


def test_finished_worker_is_removed_without_a_crashed_test():
    run = Run(CASES, CASES, workers=3)
    run.finish()
    assert [run.scheduler.remove_node(worker) for worker in run.workers] == [None] * 3


def test_test_that_kills_its_worker_is_not_run_again():
    run = Run(CASES, dict.fromkeys(CASES, 0), workers=1)
    for expected in list(CASES)[:3]:
        run.start_next(run.workers[0])
        assert run.crash(run.workers[0]) == expected
    run.finish()
    assert run.tests_of(run.workers[0]) == list(CASES)[3:]


def test_replacement_of_a_dead_worker_gets_two_tests():
    run = Run(["a", "b", "c"], {}, workers=1)
    run.start_next(run.workers[0])
    run.crash(run.workers[0])
    assert len(run.workers[0].sent) == 2


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_every_test_runs_once_whichever_workers_die(data):
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


# Names of xdist that are private or undocumented


@pytest.mark.parametrize("name", ["_reschedule", "_split_scope", "remove_node", "schedule"])
def test_xdist_has_the_method_that_case_scheduling_calls_or_overrides(name):
    assert inspect.isfunction(getattr(LoadScopeScheduling, name))


@pytest.mark.parametrize(
    ("scheduler", "name", "value"),
    [
        (LoadScopeScheduling, "assigned_work", {}),
        (LoadScopeScheduling, "workqueue", {}),
        (LoadScopeScheduling, "collection", None),
        (LoadScheduling, "collection", None),
        (LoadScheduling, "node2collection", {}),
        (LoadScheduling, "numnodes", 2),
        (LoadScheduling, "nodes", []),
    ],
)
def test_xdist_has_the_attribute_that_our_scheduling_reads(scheduler, name, value):
    assert getattr(scheduler(Config(2), SILENT), name) == value


def test_xdist_scopes_a_test_by_its_class_unless_we_override_it():
    assert LoadScopeScheduling(Config(1), SILENT)._split_scope("a.py::C::t") == "a.py::C"


# The announcement


def controller_config(shown=()):
    """A config whose terminal reporter shows these warnings."""
    reporter = SimpleNamespace(stats={"warnings": [SimpleNamespace(message=m) for m in shown]})
    manager = SimpleNamespace(get_plugin=lambda name: reporter)
    return SimpleNamespace(pluginmanager=manager), reporter


class Hook:
    """Takes the warnings that are recorded, as pytest's hook does."""

    def __init__(self, call_historic):
        self.pytest_warning_recorded = SimpleNamespace(call_historic=call_historic)


def test_announcement_goes_through_xdist_from_worker_to_controller():
    """From the worker's hook over xdist's event to the controller's hook."""
    received = []
    session = SimpleNamespace(
        config=SimpleNamespace(hook=Hook(lambda kwargs: received.append(kwargs)))
    )
    controller = SimpleNamespace(
        notify_inproc=lambda event, **data: getattr(DSession, f"worker_{event}")(session, **data),
        log=lambda *_: None,
    )
    worker = SimpleNamespace(
        sendevent=lambda event, **data: WorkerController.process_from_remote(
            controller, (event, data)
        )
    )
    hook = Hook(lambda kwargs: WorkerInteractor.pytest_warning_recorded(worker, **kwargs))
    announce(COLLECTED, SimpleNamespace(hook=hook))
    (arrived,) = received
    config, _ = controller_config()
    assert announced(arrived["warning_message"], config) == COLLECTED


def test_announcement_is_not_shown_as_a_warning():
    message = CollectedAnnouncement(COLLECTED.dump())
    recorded = warnings.WarningMessage(message, CollectedAnnouncement, "x.py", 0)
    config, reporter = controller_config([f"x.py:0: {message}", "another"])
    assert announced(recorded, config) == COLLECTED
    assert [warning.message for warning in reporter.stats["warnings"]] == ["another"]
    config, reporter = controller_config([f"x.py:0: {message}"])
    assert announced(recorded, config) == COLLECTED
    assert reporter.stats == {}


def test_other_warnings_announce_nothing():
    recorded = warnings.WarningMessage(UserWarning("x"), UserWarning, "x.py", 0)
    config, reporter = controller_config(["x"])
    assert announced(recorded, config) is None
    assert [warning.message for warning in reporter.stats["warnings"]] == ["x"]
