"""What one pass of the captions records, so that the model can start again at any layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from pytest_autoquant.calibration.batches import Batch, CalibrationData
from pytest_autoquant.errors import NotReplayableError
from pytest_autoquant.models.loading import LoadedModel
from pytest_autoquant.scoring.kl_replay.decoder_layers import DecoderLayers
from pytest_autoquant.scoring.kl_replay.divergence import Reference
from pytest_autoquant.scoring.progress import Progress
from pytest_autoquant.scoring.replay.experts.products import watched_experts
from pytest_autoquant.scoring.replay.tape import hidden_range, largest_magnitudes


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedBatch:
    """Scored captions as the unquantized model saw them, without the last token of each.

    The last token predicts nothing, and no other token attends to it.

    Attributes:
        ids: ``(captions, tokens)``, on the model's device.
        rows: where its tokens lie among the tokens of all scored batches.
        states: hidden state before each layer, ``(captions, tokens, hidden)``; before the first
            one only where no more was asked for.
        reference: its predictions.
    """

    ids: torch.Tensor
    rows: slice
    states: tuple[torch.Tensor, ...]
    reference: Reference


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """All scored captions, in the order of ``CalibrationData.replayed``, and the ranges of inputs.

    Attributes:
        amax: by linear, ``(in_features,)``: largest |X| over all calibration tokens. Fused experts
            have a second range, see ``tape.hidden_range``.
    """

    batches: tuple[RecordedBatch, ...]
    amax: Mapping[str, torch.Tensor]

    @property
    def num_tokens(self) -> int:
        """Number of tokens of all batches."""
        stop: int = self.batches[-1].rows.stop
        return stop

    def zero_inputs(self) -> tuple[str, ...]:
        """Return the linears whose inputs are zero for every calibration token."""
        largest = largest_magnitudes(self.amax)
        return tuple(name for name in self.amax if largest[name] == 0)


def record(
    model: LoadedModel,
    layers: DecoderLayers,
    data: CalibrationData,
    device: torch.device,
    progress: Progress,
    *,
    ranges: Mapping[str, torch.Tensor] | None = None,
    first_state_only: bool = False,
) -> Recording:
    """Run the scored captions forward, and then every batch if ranges are to be found.

    Args:
        device: where hidden states and predictions are kept.
        ranges: by linear, where they are known; see ``Recording.amax``.
        first_state_only: keep no hidden state but that before the first layer.

    Raises:
        NotReplayableError: the model cannot be started between its layers, or a linear, where its
            ranges are to be found, does not run once on every token.
    """
    batches: list[RecordedBatch] = []
    with torch.no_grad():
        for done, batch in enumerate(data.replayed):
            progress("record", done, len(data.replayed))
            states: dict[int, torch.Tensor] = {}
            ids = model.tensor(batch)[:, :-1]
            with layers.watched(partial(_keep, states, device, first_state_only)):
                logits = model.module(input_ids=ids, use_cache=False).logits
            start = batches[-1].rows.stop if batches else 0
            batches.append(
                RecordedBatch(
                    ids=ids,
                    rows=slice(start, start + ids.numel()),
                    states=tuple(states.values()),
                    reference=Reference(logits.to(device)),
                )
            )
    amax = ranges or input_ranges(model, [*data.replayed, *data.unscored])
    return Recording(
        batches=tuple(batches),
        amax={name: each.to(model.device) for name, each in amax.items()},
    )


def input_ranges(model: LoadedModel, batches: Sequence[Batch]) -> dict[str, torch.Tensor]:
    """Return the largest |X| per channel of each linear over batches, see ``Recording.amax``.

    Raises:
        NotReplayableError: a linear does not run once on every token.
    """
    amax: dict[str, torch.Tensor] = {}
    with torch.no_grad(), ExitStack() as stack:
        for name in (each.name for each in model.linears if each.is_fused):
            on_hidden = partial(_widen, amax, hidden_range(name))
            stack.enter_context(watched_experts(model.module.get_submodule(name), on_hidden))
        for batch in batches:
            for name, x in linear_inputs(model, model.tensor(batch)).items():
                _widen(amax, name, x)
    return amax


def linear_inputs(
    model: LoadedModel, ids: torch.Tensor, linears: Sequence[str] | None = None
) -> dict[str, torch.Tensor]:
    """Run a batch; return the input of each linear, ``(tokens, in_features)``.

    Args:
        ids: ``(captions, tokens)``.
        linears: the linears to watch, all by default.

    Raises:
        NotReplayableError: a linear runs twice, not at all, or on some tokens only.
    """
    names = [each.name for each in model.linears] if linears is None else list(linears)
    inputs: dict[str, torch.Tensor] = {}
    with _watched_linears(model, names, ids.numel(), inputs):
        model.module(input_ids=ids, use_cache=False)
    idle = next((name for name in names if name not in inputs), None)
    if idle is not None:
        raise _not_replayable(f"{idle} did not run on the captions")
    return inputs


def _keep(
    states: dict[int, torch.Tensor],
    device: torch.device,
    first_only: bool,
    index: int,
    state: torch.Tensor,
) -> None:
    if index == 0 or not first_only:
        states[index] = state.to(device)


@contextmanager
def _watched_linears(
    model: LoadedModel, names: Sequence[str], num_tokens: int, inputs: dict[str, torch.Tensor]
) -> Iterator[None]:
    with ExitStack() as stack:
        for name in names:
            hook = partial(_on_linear, name, num_tokens, inputs)
            module = model.module.get_submodule(name)
            stack.callback(module.register_forward_pre_hook(hook).remove)
        yield


def _on_linear(
    name: str, num_tokens: int, inputs: dict[str, torch.Tensor], module: Any, args: Any
) -> None:
    if not args:
        raise _not_replayable(f"{name} is not called with its input first")
    x = args[0].reshape(-1, args[0].shape[-1])
    if name in inputs:
        raise _not_replayable(f"{name} runs several times per forward")
    if len(x) != num_tokens:
        raise _not_replayable(f"{name} sees {len(x)} of {num_tokens} tokens")
    inputs[name] = x


def _widen(amax: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    """Raise the largest |X| per channel by an input, ``(tokens, in_features)``; return it."""
    largest = x.abs().amax(dim=0)
    amax[name] = torch.maximum(amax[name], largest) if name in amax else largest
    return x


def _not_replayable(reason: str) -> NotReplayableError:
    return NotReplayableError(
        f"{reason}; the replay engine cannot score this model: use --aq-engine modelopt"
    )
