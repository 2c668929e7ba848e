"""Rules between options: each is broken once, on the command line and in the ini file."""

import pytest
from builders import settings_of
from pytest_autoquant.errors import UsageError
from pytest_autoquant.options.rules import CONTRADICTIONS, NEEDS
from pytest_autoquant.options.table import BY_NAME

#: Raw values that break each contradiction, in its order; and how its message starts.
CONTRADICTORY = (
    ({"structure_only": True, "gpu_only": True}, "--aq-structure-only and --aq-gpu-only"),
    ({"publish": True, "report_dir": "out"}, "--aq-publish and --aq-report-dir"),
    ({"engine": "replay", "save_state": True}, "--aq-save-state saves the search state"),
    (
        {"method": "fisher", "engine": "modelopt"},
        "--aq-method fisher (or its ini option) is scored",
    ),
    ({"device_map": "auto", "schemes": "all"}, "--aq-schemes (or its ini option) quantizes"),
    ({"device_map": "auto", "engine": "modelopt"}, "--aq-device-map auto (or its ini option)"),
    ({"export": True}, "--aq-export (or its ini option) exports schemes"),
    ({"replace_export": True}, "--aq-replace-export (or its ini option) has no effect without"),
    ({"trust_remote_code": True, "model": "org/own"}, "--aq-trust-remote-code (or its ini option)"),
)

GATE, SCHEMES = {"baseline": "blessed"}, {"schemes": "all"}

#: A raw value of each option that needs another, and raw values that it needs.
IDLE = {
    "revision": ("v1", {"model": "org/name"}),
    "target": ("vllm", SCHEMES),
    "held_out": ("held.txt", SCHEMES),
    "max_kl": ("0.02", SCHEMES),
    "load_vllm": (True, {"export": True, **SCHEMES}),
    "tape_dir": ("tapes", {"engine": "replay"}),
    "tape_device": ("cpu", {"engine": "auto"}),
    "check_scores": (True, {"engine": "auto"}),
    "whole_model_kl": (True, {"engine": "auto"}),
    "max_memory": ("4096", {"device_map": "auto"}),
    "offload_dir": ("weights", {"device_map": "auto"}),
    "seed": ("0", {"weights": "random"}),
    "update_baseline": (True, GATE),
    "baseline_missing": ("skip", GATE),
    "baseline_allow": ("torch", GATE),
    "tol_spearman": ("0.5", GATE),
    "tol_top_ten": ("0.5", GATE),
    "tol_total": ("0.5", GATE),
    "tol_group": ("0.5", GATE),
    "tol_selected": ("3", GATE),
}

#: Raw values under which an option that has an effect by default has none.
LACKING = {
    "revision": ({}, {"model": "qwen3-vl-4b", "weights": "random"}),
    "tape_dir": ({"engine": "modelopt"}, {"method": "kl_div"}),
    "tape_device": ({"engine": "modelopt"},),
    "check_scores": (
        {"engine": "modelopt"},
        {"method": "kl_div"},
        {"save_state": True},
        {"structure_only": True},
    ),
    "whole_model_kl": ({"engine": "modelopt"}, {"save_state": True}, {"structure_only": True}),
}


def test_every_rule_is_broken_by_a_test():
    assert len(CONTRADICTORY) == len(CONTRADICTIONS)
    assert sorted(IDLE) == sorted(name for need in NEEDS for name in need.options)


@pytest.mark.parametrize("in_ini", [False, True])
@pytest.mark.parametrize("index", range(len(CONTRADICTORY)))
def test_contradiction_is_refused_wherever_it_is_written(index, in_ini):
    values, start = CONTRADICTORY[index]
    with pytest.raises(UsageError) as caught:
        settings_of(in_ini=in_ini, **values)
    assert str(caught.value).startswith(start)
    assert str(caught.value) == CONTRADICTIONS[index].message


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, v) for values, _ in CONTRADICTORY[:3] for name, v in values.items()],
)
def test_one_side_of_a_contradiction_alone_is_accepted(name, value):
    settings = settings_of(**{name: value})
    assert str(getattr(settings, name)) == str(value)


@pytest.mark.parametrize("name", IDLE)
def test_option_is_refused_on_the_command_line_without_what_it_needs(name):
    value, needed = IDLE[name]
    lacking = LACKING.get(name, ({},))
    for others in lacking:
        with pytest.raises(UsageError, match=f"^{BY_NAME[name].flag} has no effect w"):
            settings_of(**{name: value}, **others)
    assert str(getattr(settings_of(**{name: value}, **needed), name)).strip("(',)") == str(value)


@pytest.mark.parametrize("name", IDLE)
def test_option_of_the_ini_file_is_accepted_without_what_it_needs(name):
    value, _ = IDLE[name]
    others = LACKING.get(name, ({},))[0]
    settings = settings_of(in_ini=True, **{name: value}, **others)
    assert str(getattr(settings, name)).strip("(',)") == str(value)


def test_flag_that_is_switched_off_on_the_command_line_needs_nothing():
    settings = settings_of(load_vllm=False, update_baseline=False)
    assert (settings.load_vllm, settings.update_baseline) == (False, False)
