"""Where the time went: the table, and the line on the terminal."""

import pytest
from builders import results_of
from pytest_autoquant.reports.markdown.session.record import session_summary
from pytest_autoquant.reports.markdown.session.report import summary_markdown
from pytest_autoquant.reports.markdown.session.timing import (
    timing_headers,
    timing_line,
    timing_rows,
)
from pytest_autoquant.reports.page.render import render_page
from pytest_autoquant.reports.report_model import report_model
from pytest_autoquant.reports.session_results import last_run_of

ALONE = {"main": {"imports": 2.0, "sweep": 4.5, "writing": 0.04, "other": 3.0}}
WORKERS = {
    "controller": {"writing": 1.5, "other": 20.0},
    "gw0": {"sweep": 4.0, "other": 1.0},
    "gw1": {"sweep": 6.0, "other": 2.0},
}


@pytest.fixture
def timed(line):
    """Return the results of a folder whose last run took this time."""

    def results(timing):
        session = results_of(line)
        session.timing = timing
        session.last_run = last_run_of(session)
        return session

    return results


def test_line_has_the_longest_phase_first_and_the_rest_last():
    assert timing_line(ALONE) == "9.5 s: sweep 4.5, imports 2.0, other 3.0"


def test_line_sums_workers_and_leaves_out_that_the_controller_waits():
    assert timing_line(WORKERS) == "14.5 s of 2 workers, summed: sweep 10.0, writing 1.5, other 3.0"


def test_each_column_of_the_table_adds_up(timed):
    timing = timed(WORKERS).last_run.timing
    assert timing_headers(timing) == ("phase", "controller", "gw0", "gw1")
    assert timing_rows(timing) == [
        ("sweep", "0.00", "4.00", "6.00"),
        ("writing", "1.50", "0.00", "0.00"),
        ("other", "20.00", "1.00", "2.00"),
        ("in all", "21.50", "5.00", "8.00"),
    ]
    assert timing_headers(timed(ALONE).last_run.timing) == ("phase", "seconds")


def test_reports_say_where_the_time_went_if_it_is_known(timed, render):
    model = report_model(timed(ALONE))
    (process,) = session_summary(model).last_run.timing
    assert (process.process, process.seconds, process.phases) == ("main", 9.54, ALONE["main"])
    for shown in (render(summary_markdown(model)).text, render_page(model)):
        assert "Where the time went" in shown
        assert "9.54" in shown
    unknown = report_model(timed({}))
    for shown in (render(summary_markdown(unknown)).text, render_page(unknown)):
        assert "Where the time went" not in shown
