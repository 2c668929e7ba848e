"""The tape: what passed through every language-model linear, so that each can be replayed alone.

Per linear the inputs X and the gradients G of its output, over the tokens of the scored captions,
and per input channel the largest |X| over all calibration tokens. Linears that read the same tensor
(q/k/v, gate/up) share one X. Fused experts count as one linear; the tape has their routing as well.
``recorder`` makes the tape, ``token_slices`` hands it to the sweep.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from pytest_autoquant.calibration.batches import CalibrationData
from pytest_autoquant.errors import MeasurementError, WriteError
from pytest_autoquant.models.loading import LoadedModel

#: Version of the tape file's layout; part of the fingerprint.
TAPE_FORMAT = 7

#: Of how many draws a linear's gradients are kept; for q/k/v those of all draws are.
KEPT_DRAWS = 2

_V = TypeVar("_V")

_ATTENTION_INPUT = re.compile(r"(^|\.)(q|k|v|qkv)_proj$")


@dataclass(frozen=True, slots=True, kw_only=True)
class TapeFingerprint:
    """What a tape was captured from. A stored tape is used only if every field is equal.

    Attributes:
        model: digest of the model's weights.
        captions: sha256 over the captions.
        tokens: sha256 over the token ids, batch by batch.
        draws: how often gradients of the logits were drawn from the Fisher information of the
            predictions; 0 for those of the loss. ``kept_draws`` tells which of them a linear keeps.
    """

    format: int
    model: str
    dtype: str
    captions: str
    tokens: str
    batch_size: int
    num_scored: int
    draws: int
    torch: str
    transformers: str

    @property
    def digest(self) -> str:
        """Short name for files, so that tapes of different models or captions do not collide."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """Where the router of one layer sent tokens.

    Attributes:
        experts: of each token of the scored captions, ``(tokens, experts per token)``.
        weights: of their outputs, ``(tokens, experts per token)``.
        counts: calibration tokens that each expert sees, ``(experts,)``.
    """

    experts: torch.Tensor
    weights: torch.Tensor
    counts: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Tape:
    """Recorded inputs and output gradients.

    Attributes:
        source: by linear, the linear whose input it shares; its own name if it shares none.
        inputs: by source, ``(tokens, in_features)``.
        amax: by source, ``(in_features,)``: largest |X| over all calibration tokens. Fused experts
            have a second range, see ``hidden_range``.
        routing: by fused experts.
        gradients: by linear, ``(tokens, out_features)``; of drawn ones ``(tokens, draws,
            out_features)``, with the draws that the linear keeps.
        num_multi_caption_tokens: number of tokens from batches of several captions. They come
            first; the other tokens are from batches of one caption. On CUDA, ModelOpt quantizes
            the two kinds with different code (``quantizers.ShapedQuantizers.input``).
        batch_tokens: number of tokens of each batch, in the order of the tokens.
        caption_lengths: number of tokens of each caption, in the order of the tokens.
        non_finite_gradients: linears whose gradients hold NaN or an infinity.
        zero_inputs: linears whose inputs are zero for every calibration token.
        zero_gradients: linears whose gradients are all zero.
    """

    fingerprint: TapeFingerprint
    source: Mapping[str, str]
    inputs: Mapping[str, torch.Tensor]
    amax: Mapping[str, torch.Tensor]
    gradients: Mapping[str, torch.Tensor]
    routing: Mapping[str, Routing]
    num_multi_caption_tokens: int
    batch_tokens: tuple[int, ...]
    caption_lengths: tuple[int, ...]
    non_finite_gradients: tuple[str, ...]
    zero_inputs: tuple[str, ...]
    zero_gradients: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Size of the tensors in bytes."""
        return sum(tensor.nbytes for part in self.tensors.values() for tensor in part.values())

    @property
    def tensors(self) -> dict[str, Mapping[str, torch.Tensor]]:
        """All tensors, by kind and linear."""
        routed = self.routing.items()
        return {
            "input": self.inputs,
            "amax": self.amax,
            "gradient": self.gradients,
            "experts": {name: routing.experts for name, routing in routed},
            "weights": {name: routing.weights for name, routing in routed},
            "counts": {name: routing.counts for name, routing in routed},
        }


def hidden_range(experts: str) -> str:
    """Return the name of the range of what the second matrices of fused experts read."""
    return f"{experts}.down_proj"


def joined(tapes: Sequence[Tape]) -> Tape:
    """Return the tape of all layers from those of single layers, the last layer first.

    What comes of inputs is in the order of the forward pass, as on a tape of the whole model.
    """
    forward, backward = list(reversed(tapes)), list(tapes)
    return replace(
        tapes[0],
        source=_merged(tape.source for tape in forward),
        inputs=_merged(tape.inputs for tape in forward),
        amax=_merged(tape.amax for tape in forward),
        gradients=_merged(tape.gradients for tape in backward),
        routing=_merged(tape.routing for tape in forward),
        non_finite_gradients=tuple(n for tape in backward for n in tape.non_finite_gradients),
        zero_inputs=tuple(name for tape in forward for name in tape.zero_inputs),
        zero_gradients=tuple(name for tape in backward for name in tape.zero_gradients),
    )


def _merged(parts: Iterable[Mapping[str, _V]]) -> dict[str, _V]:
    return {name: value for part in parts for name, value in part.items()}


def is_attention_input(name: str) -> bool:
    """Whether a linear is one of q/k/v."""
    return _ATTENTION_INPUT.search(name) is not None


def kept_draws(name: str, draws: int) -> int:
    """Return of how many draws, the first ones, a tape keeps the gradients of a linear."""
    return draws if is_attention_input(name) else min(draws, KEPT_DRAWS)


def largest_magnitudes(tensors: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Return the largest magnitude in each tensor, NaN where it holds one; each is read once."""
    largest = [torch.linalg.vector_norm(t, ord=torch.inf) for t in tensors.values()]
    return dict(zip(tensors, torch.stack(largest).tolist(), strict=True))


def tape_fingerprint(model: LoadedModel, data: CalibrationData, draws: int = 0) -> TapeFingerprint:
    """Return the fingerprint of the tape that ``recorder.capture`` would make."""
    import transformers

    rows = [batch.rows for batch in data.batches]
    return TapeFingerprint(
        format=TAPE_FORMAT,
        model=model.record.digest,
        dtype=model.record.dtype,
        captions=data.sha256,
        tokens=hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
        batch_size=data.batch_size,
        num_scored=sum(len(batch.rows) for batch in data.scored),
        draws=draws,
        torch=torch.__version__,
        transformers=transformers.__version__,
    )


def estimate_bytes(model: LoadedModel, data: CalibrationData, draws: int = 0) -> int:
    """Return an upper bound of the tape's size in bytes: its size if no input were shared."""
    tokens = sum(batch.num_tokens for batch in data.scored)
    width = sum(
        each.in_features + max(kept_draws(each.name, draws), 1) * each.output_width
        for each in model.linears
    )
    itemsize: int = next(model.module.parameters()).element_size()
    return tokens * width * itemsize


def choose_device(requested: str, model: LoadedModel, size: int) -> torch.device:
    """Return the device that holds the tape.

    Args:
        size: bytes of what is recorded at a time.
        requested: ``cpu``, ``cuda`` or ``auto``: the model's device if the tape takes at most half
            of its free memory, else the CPU.
    """
    if model.device.type == "cpu" or requested == "cpu":
        return torch.device("cpu")
    if requested == "cuda":
        return model.device
    free, _ = torch.cuda.mem_get_info(model.device)
    return model.device if size < free // 2 else torch.device("cpu")


def check_folder(folder: Path) -> None:
    """Create the folder for tapes and check that a file can be written in it.

    Raises:
        WriteError: the folder cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _cannot_write(f"tape folder {folder}", error) from error


def save_tape(tape: Tape, path: Path) -> None:
    """Write a tape as safetensors, with its fingerprint in the header.

    Raises:
        WriteError: the file cannot be written; no partial file is left.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {
        f"{kind}/{name}": tensor.contiguous()
        for kind, part in tape.tensors.items()
        for name, tensor in part.items()
    }
    header = {
        "fingerprint": json.dumps(asdict(tape.fingerprint)),
        "source": json.dumps(dict(tape.source)),
        "num_multi_caption_tokens": json.dumps(tape.num_multi_caption_tokens),
        "batch_tokens": json.dumps(tape.batch_tokens),
        "caption_lengths": json.dumps(tape.caption_lengths),
        "non_finite_gradients": json.dumps(tape.non_finite_gradients),
        "zero_inputs": json.dumps(tape.zero_inputs),
        "zero_gradients": json.dumps(tape.zero_gradients),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".tape-") as folder:
            temporary = Path(folder) / path.name
            save_file(tensors, temporary, metadata=header)
            temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise _cannot_write(f"tape {path}", error) from error


def load_tape(
    path: Path, expected: TapeFingerprint, device: torch.device, *, pinned: bool = False
) -> Tape:
    """Read a tape.

    Args:
        pinned: load into page-locked host memory, from which a GPU copies asynchronously.

    Raises:
        MeasurementError: the file is not a tape, or its fingerprint differs; the message names the
            fields that differ.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device=str(device)) as stored:
            header = {key: json.loads(text) for key, text in (stored.metadata() or {}).items()}
            _check_fingerprint(path, header["fingerprint"], asdict(expected))
            return _read_tape(stored, header, expected, pinned)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise MeasurementError(
            f"tape {path}: is not a tape of this version: {error}; delete it to capture it again"
        ) from error


def _read_tape(
    stored: Any, header: Mapping[str, Any], fingerprint: TapeFingerprint, pinned: bool
) -> Tape:
    parts: defaultdict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for key in stored.keys():  # noqa: SIM118 - safe_open is not a mapping
        kind, _, name = key.partition("/")
        tensor = stored.get_tensor(key)
        parts[kind][name] = tensor.pin_memory() if pinned else tensor
    return Tape(
        fingerprint=fingerprint,
        source=header["source"],
        inputs=parts["input"],
        amax=parts["amax"],
        gradients=parts["gradient"],
        routing={
            name: Routing(
                experts=experts, weights=parts["weights"][name], counts=parts["counts"][name]
            )
            for name, experts in parts["experts"].items()
        },
        batch_tokens=tuple(header["batch_tokens"]),
        num_multi_caption_tokens=header["num_multi_caption_tokens"],
        caption_lengths=tuple(header["caption_lengths"]),
        non_finite_gradients=tuple(header["non_finite_gradients"]),
        zero_inputs=tuple(header["zero_inputs"]),
        zero_gradients=tuple(header["zero_gradients"]),
    )


def _check_fingerprint(path: Path, stored: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    differences = [
        f"{name} is {str(stored.get(name))[:16]} instead of {str(value)[:16]}"
        for name, value in expected.items()
        if stored.get(name) != value
    ]
    if differences:
        raise MeasurementError(
            f"tape {path}: was captured from another model, other captions or with other versions "
            f"({', '.join(differences)}); delete it to capture it again"
        )


def _cannot_write(what: str, error: Exception) -> WriteError:
    reason = getattr(error, "strerror", None) or error
    return WriteError(
        f"{what}: cannot be written ({reason}); use another folder with --aq-tape-dir"
    )
