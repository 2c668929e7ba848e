"""Rules between options: contradictions, and options that have no effect in a run.

An ini file describes many runs, so an option that has no effect is refused only where it stands on
the command line; a contradiction is refused wherever it comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_autoquant.errors import AutoquantError, UsageError
from pytest_autoquant.models.registry import find_model
from pytest_autoquant.options.table import BY_NAME, OPTIONS

if TYPE_CHECKING:
    from pytest_autoquant.options.settings import Settings

Condition = Callable[["Settings"], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A rule between options.

    Attributes:
        is_broken: whether the settings break it.
        message: what the user reads.
    """

    is_broken: Condition
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What an option needs to have an effect.

    Attributes:
        options: names of the options that need it.
        is_met: whether the settings have it.
        message: sentence after the option's name.
    """

    options: tuple[str, ...]
    is_met: Condition
    message: str


def _reads_hub(settings: Settings) -> bool | None:
    """Whether the model needs files from the hub; None for one that the run refuses anyway."""
    is_random = settings.random_seed is not None
    try:
        return find_model(settings.model, random_weights=is_random).reads_hub(
            random_weights=is_random
        )
    except AutoquantError:
        return None


CONTRADICTIONS = (
    Rule(
        is_broken=lambda s: s.structure_only and s.gpu_only,
        message="--aq-structure-only and --aq-gpu-only (--structure-only and --gpu-only with the "
        "cases, or their ini options) exclude each other; give one",
    ),
    Rule(
        is_broken=lambda s: s.publish and s.report_dir is not None,
        message="--aq-publish and --aq-report-dir (or their ini options) exclude each other; give "
        "one",
    ),
    Rule(
        is_broken=lambda s: s.engine == "replay" and s.save_state,
        message="--aq-save-state saves the search state of stock AutoQuant, which --aq-engine "
        "replay does not run; give --aq-engine auto or modelopt",
    ),
    Rule(
        is_broken=lambda s: s.method == "fisher" and (s.engine == "modelopt" or s.save_state),
        message="--aq-method fisher (or its ini option) is scored by replay, and neither "
        "--aq-engine modelopt nor --aq-save-state replays; leave them out, or give --aq-method "
        "gradient",
    ),
    Rule(
        is_broken=lambda s: s.device_map == "auto" and bool(s.schemes),
        message="--aq-schemes (or its ini option) quantizes the model as a whole to measure and "
        "export it, which --aq-device-map auto does not hold in one place; give --aq-device-map "
        "single",
    ),
    Rule(
        is_broken=lambda s: s.device_map == "auto" and (s.engine == "modelopt" or s.save_state),
        message="--aq-device-map auto (or its ini option) measures one layer at a time, by replay; "
        "--aq-engine modelopt and --aq-save-state run stock AutoQuant on the whole model: leave "
        "them out, or give --aq-device-map single",
    ),
    Rule(
        is_broken=lambda s: s.export and not s.schemes,
        message="--aq-export (or its ini option) exports schemes; name them with --aq-schemes",
    ),
    Rule(
        is_broken=lambda s: s.replace_export and not s.export,
        message="--aq-replace-export (or its ini option) has no effect without --aq-export",
    ),
    Rule(
        is_broken=lambda s: s.trust_remote_code and s.revision is None and _reads_hub(s) is True,
        message="--aq-trust-remote-code (or its ini option) would run whatever code the hub "
        "repository holds at the time; give the commit whose code you have read with --aq-revision",
    ),
)


NEEDS = (
    Need(
        options=("revision",),
        is_met=lambda s: _reads_hub(s) is not False,
        message="has no effect where nothing is read from the hub (a local folder, an embedded "
        "model, --aq-weights random of a registered model)",
    ),
    Need(
        options=("target", "held_out", "max_kl"),
        is_met=lambda s: bool(s.schemes),
        message="has no effect without --aq-schemes",
    ),
    Need(
        options=("load_vllm",),
        is_met=lambda s: s.export,
        message="has no effect without --aq-export",
    ),
    Need(
        options=("tape_dir",),
        is_met=lambda s: s.engine != "modelopt" and s.method != "kl_div",
        message="has no effect where no tape is captured (--aq-engine modelopt or --aq-method "
        "kl_div)",
    ),
    Need(
        options=("check_scores",),
        is_met=lambda s: s.method != "kl_div" and _replays_scores(s),
        message="has no effect where scores are measured (--aq-method kl_div), where stock "
        "AutoQuant scores (--aq-engine modelopt, --aq-save-state) or where nothing does "
        "(--aq-structure-only)",
    ),
    Need(
        options=("whole_model_kl",),
        is_met=lambda s: _replays_scores(s),
        message="has no effect where stock AutoQuant scores (--aq-engine modelopt, "
        "--aq-save-state) or where nothing does (--aq-structure-only)",
    ),
    Need(
        options=("tape_device",),
        is_met=lambda s: s.engine != "modelopt",
        message="has no effect where stock AutoQuant scores (--aq-engine modelopt)",
    ),
    Need(
        options=("max_memory", "offload_dir"),
        is_met=lambda s: s.device_map == "auto",
        message="has no effect without --aq-device-map auto",
    ),
    Need(
        options=("seed",),
        is_met=lambda s: s.weights == "random",
        message="has no effect without --aq-weights random",
    ),
    Need(
        options=tuple(option.name for option in OPTIONS if option.is_for_gate),
        is_met=lambda s: s.baseline is not None,
        message="has no effect without --aq-baseline DIR",
    ),
)


def _replays_scores(settings: Settings) -> bool:
    return not (settings.structure_only or settings.engine == "modelopt" or settings.save_state)


def check_rules(settings: Settings, on_command_line: AbstractSet[str]) -> None:
    """Check every rule between options.

    Args:
        on_command_line: names of the options given there, not in the ini file.

    Raises:
        UsageError: the first rule that is broken.
    """
    for rule in CONTRADICTIONS:
        if rule.is_broken(settings):
            raise UsageError(rule.message)
    for need in NEEDS:
        idle = [name for name in need.options if name in on_command_line]
        if idle and not need.is_met(settings):
            raise UsageError(f"{BY_NAME[idle[0]].flag} {need.message}")
