"""The tape: what passed through every language-model linear, for replaying each one alone.

Per linear the inputs X and the gradients G of its output, over the tokens of the scored captions,
and per input channel the largest |X| over all calibration tokens. Linears that read the same tensor
(q/k/v, gate/up) share one X. ``capture`` records it, ``strips`` hands it to the sweep.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pytest_autoquant.calibration.batches import CalibrationData
from pytest_autoquant.errors import MeasurementError
from pytest_autoquant.models.loading import LoadedModel

TAPE_FORMAT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class TapeFingerprint:
    """What a tape was captured from; a tape of anything else is refused."""

    format: int
    model: str
    dtype: str
    captions: str
    tokens: str
    batch_size: int
    num_scored: int
    torch: str
    transformers: str

    @property
    def digest(self) -> str:
        """Short name for files: tapes of different things lie side by side."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tape:
    """Recorded inputs and output gradients.

    Attributes:
        source: by linear, the linear whose input it shares (itself, if none).
        inputs: by source, ``(tokens, in_features)``.
        amax: by source, ``(in_features,)``: largest |X| over all calibration tokens.
        gradients: by linear, ``(tokens, out_features)``.
        together: how many of the tokens, the first ones, passed in batches of several captions;
            the others' captions were alone in theirs.
        broken: linears whose gradients are not finite.
    """

    fingerprint: TapeFingerprint
    source: Mapping[str, str]
    inputs: Mapping[str, torch.Tensor]
    amax: Mapping[str, torch.Tensor]
    gradients: Mapping[str, torch.Tensor]
    together: int
    broken: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that the tape occupies."""
        parts = (self.inputs, self.amax, self.gradients)
        return sum(t.nbytes for part in parts for t in part.values())


def tape_fingerprint(model: LoadedModel, data: CalibrationData) -> TapeFingerprint:
    """Return the fingerprint of the tape that ``capture`` would make."""
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
        torch=torch.__version__,
        transformers=transformers.__version__,
    )


def estimate_bytes(model: LoadedModel, data: CalibrationData) -> int:
    """Return an upper bound of a tape's size in bytes: as if no input were shared."""
    tokens = sum(batch.num_tokens for batch in data.scored)
    width = sum(linear.in_features + linear.out_features for linear in model.linears)
    itemsize: int = next(model.module.parameters()).element_size()
    return tokens * width * itemsize


def choose_device(wanted: str, model: LoadedModel, data: CalibrationData) -> torch.device:
    """Return where the tape lives: the model's device if half of its free memory holds it."""
    if model.device.type == "cpu" or wanted == "cpu":
        return torch.device("cpu")
    if wanted == "cuda":
        return model.device
    free, _ = torch.cuda.mem_get_info(model.device)
    return model.device if estimate_bytes(model, data) < free // 2 else torch.device("cpu")


def save_tape(tape: Tape, path: Path) -> None:
    """Write a tape as safetensors, its fingerprint in the header."""
    from safetensors.torch import save_file

    parts = {"input": tape.inputs, "amax": tape.amax, "gradient": tape.gradients}
    tensors = {
        f"{kind}/{name}": tensor.contiguous()
        for kind, part in parts.items()
        for name, tensor in part.items()
    }
    header = {
        "fingerprint": json.dumps(asdict(tape.fingerprint)),
        "source": json.dumps(dict(tape.source)),
        "together": json.dumps(tape.together),
        "broken": json.dumps(tape.broken),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".tape-") as folder:
        temporary = Path(folder) / path.name
        save_file(tensors, temporary, metadata=header)
        temporary.replace(path)


def load_tape(
    path: Path, wanted: TapeFingerprint, device: torch.device, *, pinned: bool = False
) -> Tape:
    """Read a tape.

    Args:
        pinned: put it into page-locked host memory, from which a GPU copies without waiting.

    Raises:
        MeasurementError: no tape, or one captured from another model, captions or version; the
            message names the fields that differ.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device=str(device)) as stored:
            header = stored.metadata() or {}
            found = json.loads(header["fingerprint"])
            _refuse_other(path, found, asdict(wanted))
            parts: dict[str, dict[str, torch.Tensor]] = {"input": {}, "amax": {}, "gradient": {}}
            for key in stored.keys():  # noqa: SIM118 - safe_open is no mapping
                kind, _, name = key.partition("/")
                tensor = stored.get_tensor(key)
                parts[kind][name] = tensor.pin_memory() if pinned else tensor
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise MeasurementError(
            f"tape {path}: is not a tape of this version: {error}; delete it to capture anew"
        ) from error
    return Tape(
        fingerprint=wanted,
        source=json.loads(header["source"]),
        inputs=parts["input"],
        amax=parts["amax"],
        gradients=parts["gradient"],
        together=json.loads(header["together"]),
        broken=tuple(json.loads(header["broken"])),
    )


def _refuse_other(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    differing = [name for name in wanted if found.get(name) != wanted[name]]
    if differing:
        details = ", ".join(
            f"{name} {str(found.get(name))[:16]} instead of {str(wanted[name])[:16]}"
            for name in differing
        )
        raise MeasurementError(
            f"tape {path}: was captured from something else ({details}); delete it to capture anew"
        )
