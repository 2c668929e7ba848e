"""``aq-harness list``: which pair runs under which granularity on this machine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_autoquant.cli.command import OK, Command, announce
from pytest_autoquant.errors import AutoquantError
from pytest_autoquant.extras import require_measure
from pytest_autoquant.grid.case import Combination, combinations
from pytest_autoquant.grid.vocabulary import load_vocabulary, select_vocabulary
from pytest_autoquant.models.registry import find_model
from pytest_autoquant.options.settings import RawValue, Settings, read_settings
from pytest_autoquant.options.table import BY_NAME, Option

if TYPE_CHECKING:
    from pytest_autoquant.formats.effective_config import EffectiveConfig
    from pytest_autoquant.models.registry import ModelSource

#: The plugin's options that change the matrix; they keep their values' syntax here.
LIST_OPTIONS = (
    "model",
    "revision",
    "device",
    "dtype",
    "weights",
    "pairs",
    "granularities",
    "conf",
    "trust_remote_code",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare each option as ``--pairs`` and as pytest spells it: error messages name that one."""
    for name in LIST_OPTIONS:
        _add_option(parser, BY_NAME[name])


def list_support(arguments: argparse.Namespace) -> int:
    """Print the status of every pair under every granularity, with the reason of each refusal."""
    settings = read_settings(lambda option: _raw(arguments, option))
    require_measure("list")
    print(support_report(settings))
    return OK


def support_report(settings: Settings) -> str:
    """Probe every selected combination and return the matrix as text."""
    from pytest_autoquant.cli.support_matrix import render_matrix
    from pytest_autoquant.modelopt_support.support_matrix import support_matrix
    from pytest_autoquant.scoring.configurations import Configurations

    source = find_model(
        settings.model,
        random_weights=settings.random_seed is not None,
        revision=settings.revision,
    )
    selected = _selected(settings)
    configurations = Configurations(
        settings.device, settings.dtype, _progress, is_cached=settings.cache is not False
    )
    cells = support_matrix(configurations, selected)
    configs = [configurations.config(combination) for combination in selected]
    padded = _padded_lines(configs, source, trust_remote_code=settings.trust_remote_code)
    return "\n".join([render_matrix(configurations.device.type, cells), *padded])


def _selected(settings: Settings) -> tuple[Combination, ...]:
    known = load_vocabulary(settings.conf)
    for note in known.notes:
        announce(note)
    return tuple(combinations(select_vocabulary(known, settings.pairs, settings.granularities)))


def _padded_lines(
    configs: Sequence[EffectiveConfig], source: ModelSource, *, trust_remote_code: bool
) -> list[str]:
    """Return the widths that blocks do not divide; they come from the model's config alone."""
    from pytest_autoquant.cli.support_matrix import render_padded
    from pytest_autoquant.modelopt_support.support_matrix import padded_layers
    from pytest_autoquant.models.layers import architecture_linears

    try:
        linears = architecture_linears(source, trust_remote_code=trust_remote_code)
    except AutoquantError as error:
        return [f"layer widths unknown: {error}"]
    return render_padded(padded_layers(configs, linears))


def _progress(phase: str, done: int, total: int) -> None:
    announce(phase)


def _add_option(parser: argparse.ArgumentParser, option: Option) -> None:
    flags = (_flag(option), option.flag)
    if option.is_flag:
        parser.add_argument(
            *flags, dest=option.ini, action="store_true", default=None, help=option.help_text
        )
    else:
        parser.add_argument(
            *flags, dest=option.ini, metavar=option.kind.metavar, help=option.help_text
        )


def _raw(arguments: argparse.Namespace, option: Option) -> RawValue:
    value = getattr(arguments, option.ini, None)
    return RawValue(value=value, origin=_flag(option), is_on_command_line=value is not None)


def _flag(option: Option) -> str:
    return "--" + option.name.replace("_", "-")


COMMAND = Command(
    name="list",
    summary="print which pair runs under which granularity here",
    add_arguments=add_arguments,
    run=list_support,
)
