"""Planning a sweep, and scoring one slice of a tape."""

import pytest
import torch
from builders import config_of
from pytest_autoquant.scoring.engine import Failure
from pytest_autoquant.scoring.replay.quantizers import ShapedQuantizers
from pytest_autoquant.scoring.replay.sweep import SweepResult, plan_sweep, sweep_slice
from pytest_autoquant.scoring.replay.token_slices import TokenSlice
from torch import nn


def configs_of(*pairs):
    return [config_of(pair) for pair in pairs]


def test_plan_holds_each_quantizer_once_and_each_product():
    configs = configs_of("wint8_aint8", "wint8_afp16", "wfp8_aint8", "wfp16_aint8")
    plan = plan_sweep(configs)
    int8, _, fp8, _ = (config.weight for config in configs)
    assert set(plan.weights) == {int8, fp8, None}
    assert set(plan.inputs) == {configs[0].input, None}
    assert plan.weights[None] is plan.inputs[None] is None
    assert {
        attributes: [(product.config, product.input) for product in products]
        for attributes, products in plan.products.items()
    } == {
        int8: [(0, configs[0].input), (1, None)],
        fp8: [(2, configs[0].input)],
        None: [(3, configs[0].input)],
    }
    assert not plan.is_enabled(configs[1])
    plan.weights[int8].weight(torch.ones(2, 2))
    assert plan.is_enabled(configs[1])
    described = plan.descriptions(configs[1])
    assert described["weight_quantizer"].startswith("8 bit fake")
    assert described["input_quantizer"] == "disabled"


@pytest.fixture
def module():
    torch.manual_seed(0)
    return nn.ModuleDict({"a": nn.Linear(128, 8), "b": nn.Linear(128, 4)}).requires_grad_(False)


@pytest.fixture
def token_slice(module):
    x = torch.randn(6, 128)
    return TokenSlice(
        x=x,
        amax=x.abs().amax(dim=0) * 2,
        num_multi_caption_tokens=0,
        caption_lengths=torch.tensor([2, 4]),
        gradients={name: torch.randn(6, linear.out_features) for name, linear in module.items()},
    )


def test_slices_are_scored_by_the_formula_and_added(module, token_slice):
    """INT8 weights per output channel, written out: scale amax / 127, round."""
    plan, result = plan_sweep(configs_of("wint8_afp16")), SweepResult()
    sweep_slice(plan, token_slice, module, result)
    a, b, both = result.by_group([("a",), ("b",), ("a", "b")])
    assert torch.equal(a + b, both)
    for scores, (name, linear) in zip((a, b), module.items(), strict=True):
        scale = linear.weight.abs().amax(dim=1, keepdim=True) / 127
        change = (linear.weight / scale).round() * scale - linear.weight
        expected = (token_slice.gradients[name] * (token_slice.x @ change.T)).square().sum(1)
        captions = [float(part.sum()) for part in expected.split([2, 4])]
        assert scores.tolist() == [pytest.approx(captions, rel=1e-3)]
    sweep_slice(plan, token_slice, module, result)
    assert torch.equal(result.by_group([("a", "b")])[0], 2 * both)


def test_each_quantizer_runs_once_per_tensor(module, token_slice, monkeypatch):
    configs = configs_of("wint8_aint8", "wint8_afp8", "wint8_afp16", "wfp8_aint8", "wfp8_afp8")
    calls = []
    for kind in ("weight", "input"):
        stock = getattr(ShapedQuantizers, kind)

        def counted(self, *arguments, stock=stock, kind=kind):
            calls.append(kind)
            return stock(self, *arguments)

        monkeypatch.setattr(ShapedQuantizers, kind, counted)
    sweep_slice(plan_sweep(configs), token_slice, module, SweepResult())
    assert (calls.count("weight"), calls.count("input")) == (2 * len(module), 2)


def test_config_that_raises_is_not_tried_again(module, token_slice, monkeypatch):
    def refuse(self, weight, amax=None):
        attempts.append(weight)
        raise ValueError("no such\nformat")

    attempts, result = [], SweepResult()
    monkeypatch.setattr(ShapedQuantizers, "weight", refuse)
    sweep_slice(plan_sweep(configs_of("wint8_afp16", "wfp16_aint8")), token_slice, module, result)
    assert isinstance(result.failures[0], Failure)
    assert result.failures[0].reason == "ValueError: no such format"
    assert set(result.failures) == {0}
    assert len(attempts) == 1
    assert (result.by_group([("a",), ("b",)])[:, 1] > 0).all()


def test_out_of_memory_is_raised(module, token_slice, monkeypatch):
    def run_out(self, weight, amax=None):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(ShapedQuantizers, "weight", run_out)
    with pytest.raises(torch.OutOfMemoryError):
        sweep_slice(plan_sweep(configs_of("wint8_afp16")), token_slice, module, SweepResult())
