"""The command line ``aq-harness``: what needs no test run.

A command is a function from the parsed arguments to an exit status and a block that declares it
in ``_parser``. Nothing here imports torch, transformers or ModelOpt before a command needs it.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pytest_autoquant import __version__
from pytest_autoquant.errors import AutoquantError, RecordError
from pytest_autoquant.options.settings import OPTIONS, Option, Settings, read_settings

Command = Callable[[argparse.Namespace], int]

OK, FAILED, USAGE_ERROR, INTERRUPTED = 0, 1, 2, 130

LIST_OPTIONS = (
    "model",
    "device",
    "dtype",
    "weights",
    "pairs",
    "granularities",
    "conf",
    "trust_remote_code",
)
"""What can change the matrix, and what an error about it tells the user to give."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; 2 when it was asked for something wrong."""
    for stream in (sys.stdout, sys.stderr):
        # A folder's name need not be text that the terminal can show.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.command(arguments)
        sys.stdout.flush()
    except AutoquantError as error:
        print(f"aq-harness: {error}", file=sys.stderr)
        return USAGE_ERROR
    except BrokenPipeError:
        # Whoever read the output has seen enough; Python must not fail on it again as it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    return status


def list_matrix(arguments: argparse.Namespace) -> int:
    """Print which pair runs under which overlay here, and why the others do not."""
    from pytest_autoquant.cli.support_matrix import matrix_report
    from pytest_autoquant.plugin.session import AutoquantSession

    print(matrix_report(AutoquantSession(_settings(arguments), Path())))
    return OK


def render(arguments: argparse.Namespace) -> int:
    """Rebuild every report under a folder from its manifests."""
    from pytest_autoquant.reports.rebuild import rebuild, rebuilt_report

    folder: Path = arguments.folder
    if not folder.is_dir():
        raise RecordError(f"{folder}: no such folder; give one that holds manifests")
    results = rebuild(folder)
    print(rebuilt_report(folder, results))
    return FAILED if results.left_out else OK


def compare(arguments: argparse.Namespace) -> int:
    """Print how the cases of one run differ from those of another."""
    from pytest_autoquant.reports.comparison_report import compare_markdown
    from pytest_autoquant.reports.run_comparison import compare_runs

    comparison = compare_runs(arguments.before, arguments.after)
    print(compare_markdown(comparison), end="")
    if arguments.html is not None:
        from pytest_autoquant.reports.write import write_comparison

        write_comparison(arguments.html, comparison)
        print(f"\nwrote {arguments.html}")
    return OK


def merge(arguments: argparse.Namespace) -> int:
    """Join the report folders of shards or other independent runs into one."""
    from pytest_autoquant.reports.merge import merge as join
    from pytest_autoquant.reports.session_report import counts_sentence

    results = join(arguments.folders, arguments.into, partial=arguments.partial)
    print(f"{arguments.into}: {counts_sentence(results)}")
    return FAILED if results.failures or results.gated or results.lost else OK


def check_export(arguments: argparse.Namespace) -> int:
    """Print which rules of vLLM's ModelOpt loader an exported checkpoint breaks."""
    from pytest_autoquant.export.vllm_rules import export_report, find_violations, read_export

    export = read_export(arguments.folder)
    violations = find_violations(export)
    print(export_report(arguments.folder, export, violations))
    return FAILED if violations else OK


def run_doctor(arguments: argparse.Namespace) -> int:
    """Print what this machine has of what AutoQuant needs."""
    from pytest_autoquant.cli.doctor import can_run, examine, render_checks

    checks = examine(_announce)
    print(render_checks(checks))
    return OK if can_run(checks) else FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aq-harness",
        description="Quantization sensitivity with ModelOpt AutoQuant: what needs no test run.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = _command(commands, "list", "print pair x granularity with status here", list_matrix)
    for option in OPTIONS:
        if option.name in LIST_OPTIONS:
            _add_option(command, option)

    command = _command(commands, "render", "rebuild every report from its manifests", render)
    command.add_argument("folder", type=Path, metavar="DIR", help="folder that holds manifests")

    command = _command(commands, "compare", "say how two runs of the same cases differ", compare)
    command.add_argument("before", type=Path, metavar="A", help="report folder or manifest")
    command.add_argument("after", type=Path, metavar="B", help="report folder or manifest")
    command.add_argument("--html", type=Path, metavar="FILE", help="write both as one page")

    command = _command(commands, "merge", "join report folders of independent runs", merge)
    command.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="report folders")
    command.add_argument("--into", type=Path, required=True, metavar="DIR", help="joined report")
    command.add_argument("--partial", action="store_true", help="do without what is missing")

    command = _command(commands, "check-export", "apply vLLM's static rules", check_export)
    command.add_argument("folder", type=Path, metavar="DIR", help="exported checkpoint")

    _command(commands, "doctor", "say what is here of what AutoQuant needs", run_doctor)
    return parser


def _command(commands: Any, name: str, summary: str, run: Command) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=run.__doc__, allow_abbrev=False
    )
    command.set_defaults(command=run)
    return command


def _add_option(command: argparse.ArgumentParser, option: Option) -> None:
    """Add one of the plugin's options, also as pytest spells it: error messages do."""
    flags, shown = (_flag(option), option.flag), option.help
    if option.kind == "flag":
        command.add_argument(*flags, dest=option.ini, action="store_true", default=None, help=shown)
    else:
        metavar = "|".join(option.choices) or option.kind.upper()
        command.add_argument(*flags, dest=option.ini, metavar=metavar, help=shown)


def _settings(arguments: argparse.Namespace) -> Settings:
    return read_settings(lambda option: (getattr(arguments, option.ini, None), _flag(option)))


def _flag(option: Option) -> str:
    return "--" + option.name.replace("_", "-")


def _announce(what: str) -> None:
    print(f"aq-harness: {what}", file=sys.stderr, flush=True)
