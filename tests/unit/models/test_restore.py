"""Snapshot and restore of a module tree, part by part and as a whole."""

from types import SimpleNamespace

import pytest
import torch
from builders import model_state
from pytest_autoquant.models.restore import (
    ModuleSnapshot,
    SavedAttribute,
    SavedObject,
    SavedParameter,
    preserved,
)
from torch import nn


@pytest.mark.parametrize(
    ("value", "change"),
    [
        ({"a": 1}, lambda value: value.update(b=2)),
        ([1, 2], lambda value: value.append(3)),
        ({1, 2}, lambda value: value.discard(1)),
    ],
    ids=["dict", "list", "set"],
)
def test_container_is_restored_in_place_and_other_attributes_by_identity(value, change):
    before, other = value.copy(), torch.ones(2)
    saved = SavedAttribute.of(value)
    change(value)
    assert value != before
    assert saved.restored() is value
    assert value == before
    assert SavedAttribute.of(other).restored() is other


class Target:
    """Any object with attributes."""


def test_object_gets_its_class_and_attributes_back():
    target = Target()
    target.kept, target.removed = 1, 2
    saved = SavedObject.of(target)
    target.__class__ = type("Changed", (Target,), {})
    target.kept, target.added = 3, 4
    del target.removed
    saved.restore()
    assert type(target) is Target
    assert vars(target) == {"kept": 1, "removed": 2}


@pytest.mark.parametrize("has_grad", [True, False])
@pytest.mark.parametrize("values", [True, False])
def test_parameter_gets_its_gradient_back_and_its_values_if_saved(has_grad, values):
    parameter = nn.Parameter(torch.ones(2))
    grad = parameter.grad = torch.full((2,), 5.0) if has_grad else None
    saved = SavedParameter.of(parameter, values=values)
    parameter.requires_grad_(False)
    parameter.grad = torch.zeros(2)
    with torch.no_grad():
        parameter.add_(1)
    saved.restore()
    assert parameter.requires_grad
    assert parameter.grad is grad
    assert parameter.tolist() == ([1.0, 1.0] if values else [2.0, 2.0])


def test_snapshot_holds_each_module_and_config_once():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    shared = SimpleNamespace(size=2)
    module[0].config = module[1].config = shared
    snapshot = ModuleSnapshot.of(module)
    assert [saved.target for saved in snapshot.objects] == [module, module[0], module[1], shared]
    assert [saved.parameter for saved in snapshot.parameters] == list(module.parameters())
    shared.size = 3
    snapshot.restore()
    assert shared.size == 2


def change_everything(module):
    linear = module.get_submodule("model.language_model.layers.0.mlp.up_proj")
    linear.__class__ = type("Changed", (nn.Linear,), {})
    linear.forward = lambda x: x.repeat(1, 1, 3)
    linear.extra = torch.ones(1)
    linear.register_forward_hook(lambda *_: None)
    linear.register_buffer("amax", torch.ones(1))
    linear.weight.requires_grad_(False)
    linear.weight.grad = torch.ones_like(linear.weight)
    module.config.text_config.use_cache = False
    module.train()


def test_model_is_restored_when_the_block_raises(tiny):
    before = model_state(tiny.module)

    def change_and_raise():
        with preserved(tiny.module):
            change_everything(tiny.module)
            changed = model_state(tiny.module)
            same = {key for key in before if changed[key] == before[key]}
            assert same == {"weights", "identity", "is_tied"}
            raise KeyError

    with pytest.raises(KeyError):
        change_and_raise()
    assert model_state(tiny.module) == before


@pytest.mark.parametrize("weights", [True, False])
def test_weights_are_restored_only_if_asked_for(weights):
    linear = nn.Linear(2, 2)
    start = linear.weight.detach().clone()
    with preserved(linear, weights=weights), torch.no_grad():
        linear.weight.add_(1)
    assert torch.equal(linear.weight, start if weights else start + 1)
