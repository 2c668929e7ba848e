"""Linears through which nothing passed: found alike by both engines, and a problem or a note."""

from dataclasses import replace

import pytest
import torch
from builders import calibration_of, config_of, ignore_progress
from pytest_autoquant.models.restore import preserved
from pytest_autoquant.models.weight_values import dead_linears
from pytest_autoquant.scoring.engine import silent_groups
from pytest_autoquant.scoring.kl_replay.engine import KLReplayEngine
from pytest_autoquant.scoring.manifest.build_manifest import find_problems
from pytest_autoquant.scoring.replay.engine import ReplayEngine
from pytest_autoquant.scoring.signal import Signal
from pytest_autoquant.scoring.stock.engine import StockEngine

LAYERS = "model.language_model.layers"
QKV = tuple(f"{LAYERS}.0.self_attn.{each}_proj" for each in "qkv")
ENGINES = {
    "replay": ReplayEngine,
    "modelopt": lambda model: StockEngine(model, method="gradient"),
    "kl_div replay": KLReplayEngine,
    "kl_div": lambda model: StockEngine(model, method="kl_div"),
}


@pytest.fixture(scope="module")
def data(tiny):
    return replace(calibration_of(tiny, score_size=4), unscored=())


def measure(engine, model, data):
    config = config_of("wint8_aint8")
    return ENGINES[engine](model).score([config], data, ignore_progress)[config.digest]


def scores(measured):
    return {group.modules[0]: group.score for group in measured.groups}


@pytest.mark.parametrize("engine", ENGINES)
def test_dead_linears_silence_their_neighbours_with_a_note_and_no_problem(tiny, data, engine):
    """Behind a dead ``o_proj`` no gradient flows back; before a dead ``v_proj`` no input comes."""
    dead = (f"{LAYERS}.0.self_attn.o_proj", f"{LAYERS}.1.self_attn.v_proj")
    before, after = QKV, f"{LAYERS}.1.self_attn.o_proj"
    with preserved(tiny.module, weights=True):
        for name in dead:
            tiny.module.get_submodule(name).weight.data.zero_()
        assert dead_linears(tiny.module, tiny.linears) == dead
        measured = measure(engine, replace(tiny, dead=dead), data)
    has_gradients = not engine.startswith("kl_div")
    q_and_k = tuple(f"{LAYERS}.1.self_attn.{each}_proj" for each in "qk")
    assert measured.signal == Signal(
        dead=dead, unfed=(after,), unmoved=(*before, *q_and_k) if has_gradients else ()
    )
    zeros = {name for name, score in scores(measured).items() if score == 0}
    assert zeros == {QKV[0], dead[0], q_and_k[0], after}
    assert silent_groups(measured) == ()
    notes = measured.signal.notes()
    assert notes[0] == (
        f"all weights are zero of 2 linears: {', '.join(dead)}; a group with one stays in 16 bits"
    )
    assert (
        notes[1] == f"all inputs are zero of 1 linear: {after}; a group with one stays in 16 bits"
    )
    third = f"all gradients are zero of 5 linears: {', '.join((*before, *q_and_k))}; "
    assert notes[2:] == ((f"{third}one adds nothing to its group's score",) * has_gradients)
    kept = [g.modules[0] for g in measured.groups if measured.signal.keeps_16_bits(g.modules)]
    assert kept == [dead[0], q_and_k[0], after]


def skips_the_mlp(layer):
    layer.mlp.forward = torch.zeros_like


def drops_the_mlp(layer):
    """The multilayer perceptron runs, and nothing comes of it."""
    run = layer.mlp.forward
    layer.mlp.forward = lambda x: run(x) * 0


@pytest.mark.parametrize(
    ("engine", "change"),
    [
        ("replay", drops_the_mlp),
        ("modelopt", drops_the_mlp),
        ("modelopt", skips_the_mlp),
        ("kl_div", skips_the_mlp),
    ],
)
def test_group_without_a_signal_is_a_problem(tiny, data, engine, change):
    """Its score is zero under every format, which is the least sensitive rank."""
    layer = tiny.module.get_submodule(f"{LAYERS}.2")
    with preserved(tiny.module):
        change(layer)
        measured = measure(engine, tiny, data)
    silent = [f"{LAYERS}.2.mlp.{each}_proj" for each in ("gate", "down")]
    assert [scores(measured)[name] for name in silent] == [0, 0]
    names = ", ".join(f"{name}.quant_recipe" for name in silent)
    (problem,) = find_problems(measured, {linear.name: linear for linear in tiny.linears})
    assert problem == (
        f"nothing passed through 2 groups, so a score of zero says nothing: {names} never ran, or "
        "all inputs or all gradients were zero"
    )


def test_model_with_a_signal_everywhere_has_neither_problems_nor_notes(tiny, data):
    for engine in ENGINES:
        measured = measure(engine, tiny, data)
        assert (measured.signal, measured.signal.notes()) == (Signal(), ())
        assert find_problems(measured, {linear.name: linear for linear in tiny.linears}) == ()
