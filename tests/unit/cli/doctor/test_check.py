"""The table of checks, the advice below it, and the verdict."""

from pytest_autoquant.cli.doctor.check import Check, render_checks

COMMAND = "python -m pip install 'torch>=2.8' 'transformers<5.15,>=5.0' " + "x" * 100
PYTHON = Check(name="python", status="ok", found="3.12.1")
CHECKS = (
    PYTHON,
    Check(name="torch", status="missing", found="not installed", advice=COMMAND),
    Check(name="transformers", status="missing", found="4.50.0", advice=COMMAND),
    Check(name="ninja", status="warning", found="not found", advice="install it"),
)


def test_table_is_followed_by_each_advice_once_and_the_verdict():
    assert render_checks(CHECKS).splitlines()[2:] == [
        "python        ok        3.12.1",
        "torch         missing   not installed",
        "transformers  missing   4.50.0",
        "ninja         warning   not found",
        "",
        "torch, transformers:",
        f"    {COMMAND}",
        "ninja:",
        "    install it",
        "",
        "AutoQuant cannot run on this machine",
    ]
    assert render_checks([PYTHON]).splitlines()[2:] == [
        "python   ok        3.12.1",
        "",
        "AutoQuant can run on this machine",
    ]
