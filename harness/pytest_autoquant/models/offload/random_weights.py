"""Seeded random weights, made module by module whenever they are asked for.

Each module has a seed of its own, so a model that is never in memory as a whole has the weights of
one that is.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

#: Standard deviation of matrices that the model's class does not initialize; vectors are ones.
_DEVIATION = 0.02


class RandomWeights(Mapping[str, torch.Tensor]):
    """The weights of a model by name, as the model's class initializes them.

    Args:
        module: the model with its parameters on the meta device, and without hooks.
        device: where weights are made; a CPU and a GPU make different ones.
    """

    def __init__(self, module: Any, *, seed: int, device: torch.device) -> None:
        self._blank = copy.deepcopy(module)
        self._seed, self._device = seed, device
        self._shared: Mapping[str, str] = module.all_tied_weights_keys
        own = [name for name, _ in module.named_parameters()]
        self._names = dict.fromkeys([*own, *self._shared])

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        owner, _, own = self._shared.get(name, name).rpartition(".")
        return self.of_module(owner)[own]

    def __contains__(self, name: object) -> bool:
        return name in self._names  # without making it

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def is_shared(self, name: str) -> bool:
        """Whether a weight is another module's."""
        return name in self._shared

    def of_module(self, name: str) -> dict[str, torch.Tensor]:
        """Make a module's own weights, without those of its submodules."""
        module = copy.copy(self._blank.get_submodule(name))
        made = {
            key: nn.Parameter(torch.empty_like(weight, device=self._device))
            for key, weight in module.named_parameters(recurse=False)
        }
        module._parameters = dict.fromkeys(module._parameters) | made  # absent biases stay None
        gpus = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(gpus), torch.no_grad():
            torch.manual_seed(self._seed_of(name))
            for weight in made.values():
                _ = weight.fill_(1.0) if weight.dim() < 2 else weight.normal_(0.0, _DEVIATION)
            self._class_of(name)._init_weights(module)
        return {key: weight.detach() for key, weight in made.items()}

    def _seed_of(self, name: str) -> int:
        text = f"{self._seed} {name}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    def _class_of(self, name: str) -> Any:
        """Return the model or submodel that initializes a module: the nearest around it."""
        from transformers import PreTrainedModel

        module = self._blank.get_submodule(name)
        while not isinstance(module, PreTrainedModel):
            name = name.rpartition(".")[0]
            module = self._blank.get_submodule(name)
        return module
