"""Every output marks results of random weights."""

from dataclasses import replace

import pytest
from builders import HtmlPage, changed, results_of
from pytest_autoquant.cli import main
from pytest_autoquant.manifests.case_result import case_result_of
from pytest_autoquant.reports.charts.layer_map import draw_layer_map
from pytest_autoquant.reports.markdown.case_report import layer_report_markdown
from pytest_autoquant.reports.markdown.elements import RANDOM_WEIGHTS
from pytest_autoquant.reports.markdown.scheme.report import schemes_markdown
from pytest_autoquant.reports.markdown.session.record import session_summary
from pytest_autoquant.reports.markdown.session.report import summary_markdown
from pytest_autoquant.reports.page.render import render_page
from pytest_autoquant.reports.report_model import report_model
from pytest_autoquant.reports.terminal_report import terminal_lines
from pytest_autoquant.reports.write import write_case, write_summary

CAUTION = "Caution: the weights of toy are random."


def with_weights(manifest, weights):
    return changed(changed(manifest, "model", weights=weights), "run_config", weights=weights)


def outputs(manifest, derived, render):
    """Everything that a reader sees of one case and one scheme."""
    case = case_result_of(manifest)
    schemes = {"mine": replace(derived, model=manifest.model)}
    results = results_of(case, schemes=schemes)
    model = report_model(results)
    page = HtmlPage(render_page(model))
    (summary,) = session_summary(model).cases
    return {
        "layer report": render(layer_report_markdown(manifest, case)).text,
        "summary": render(summary_markdown(model)).text,
        "schemes": render(schemes_markdown(schemes)).text,
        "page": page.text,
        "terminal": "\n".join(terminal_lines(results)),
    }, (summary.weights, page.data["cases"][0]["remarks"], draw_layer_map(case))


def test_random_weights_are_marked_in_every_output_and_trained_ones_in_none(
    manifest, derived, render
):
    texts, (weights, remarks, picture) = outputs(with_weights(manifest, "random"), derived, render)
    assert {name for name, text in texts.items() if CAUTION not in text} == set()
    assert (weights, remarks[0]) == ("random", RANDOM_WEIGHTS.capitalize())
    assert RANDOM_WEIGHTS in picture
    texts, (weights, remarks, picture) = outputs(manifest, derived, render)
    assert {name for name, text in texts.items() if "Caution" in text} == set()
    assert weights == "checkpoint"
    assert "andom weights" not in picture + " ".join(remarks)


@pytest.mark.parametrize("weights", ["random", "checkpoint"])
def test_commands_print_the_caution(tmp_path, capsys, manifest, weights):
    manifest = with_weights(manifest, weights)
    write_case(tmp_path / "a", manifest)
    write_summary(tmp_path / "a", results_of(case_result_of(manifest)))
    for arguments in (
        ["render", str(tmp_path / "a")],
        ["compare", str(tmp_path / "a"), str(tmp_path / "a")],
        ["merge", str(tmp_path / "a"), "--into", str(tmp_path / "b")],
    ):
        assert main(arguments) == 0
        assert (CAUTION in capsys.readouterr().out) is (weights == "random")
    (grid,) = (tmp_path / "a").glob("grid-*.svg")
    assert (RANDOM_WEIGHTS in grid.read_text()) is (weights == "random")
