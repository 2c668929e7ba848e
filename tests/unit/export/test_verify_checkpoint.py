"""Checkpoints read back: by our own dequantization, and refused after every kind of damage."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from pytest_autoquant.errors import ExportError
from pytest_autoquant.export.apply_scheme import GroupFormat
from pytest_autoquant.export.checkpoint.verify import Verification, verify_checkpoint
from pytest_autoquant.models.registry import REGISTRY
from safetensors.torch import load_file, save_file
from scheme_model import DOWN, GATE_UP, LAYERS, OUT, QKV, export_scheme, formats_of, snapshot
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

SOURCE = REGISTRY["tiny-qwen3-vl"]
WEIGHTS = "model.safetensors"
RECIPES = {
    "fp8": formats_of(("wfp8_afp8", QKV, OUT, GATE_UP)),
    "fp8 per channel": formats_of(("wfp8_afp8-recipe_match_channel_token", QKV, GATE_UP)),
    "fp8 and int4": formats_of(("wfp8_afp8", QKV), ("wint4_afp16", OUT, GATE_UP)),
    "int4 in blocks of 64": formats_of(("wint4_afp16-w_group64", DOWN)),
    "fp8 in blocks": formats_of(("fp8_blocks", QKV, DOWN)),
    "int8 weights": formats_of(("wint8_afp16", QKV, DOWN)),
    "int8": formats_of(("wint8_aint8", QKV, GATE_UP)),
    "nothing": (),
}


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint and its tensors."""

    formats: tuple[GroupFormat, ...]
    folder: Path
    verified: Verification
    tensors: dict[str, torch.Tensor]

    @property
    def quantized(self):
        return {name for group in self.formats for name in group.modules}


@pytest.fixture(scope="module")
def checkpoints(tiny, calibration, tmp_path_factory):
    """Every recipe, exported once."""
    made = {}
    for name, formats in RECIPES.items():
        folder = tmp_path_factory.mktemp("checkpoint")
        verified = export_scheme(tiny, SOURCE, formats, calibration, folder)
        made[name] = Checkpoint(formats, folder, verified, load_file(folder / WEIGHTS))
    return made


@pytest.fixture(params=RECIPES)
def checkpoint(request, checkpoints):
    return checkpoints[request.param]


def test_verification_counts_every_tensor(checkpoint, tiny):
    verified, names = checkpoint.verified, set(checkpoint.tensors)
    kept = [name for name in names if name.rpartition(".")[0] not in checkpoint.quantized]
    assert verified.stored_bytes == (checkpoint.folder / WEIGHTS).stat().st_size
    assert verified.num_quantized == len(checkpoint.quantized)
    assert verified.num_identical == len(kept)
    assert 0 <= verified.largest_error <= (1e-3 if checkpoint.formats else 0)
    tied = {"lm_head.weight"} - names
    assert len(tiny.module.state_dict()) == len(kept) + len(checkpoint.quantized) + len(tied)


def dequantized(tensors, name, rows):
    """Return a stored linear in fp32: one scale, one per row, or one per block."""
    weight, scale = tensors[f"{name}.weight"], tensors[f"{name}.weight_scale"].float()
    if weight.dtype == torch.uint8:
        values = torch.empty(rows, weight.shape[1])
        for half in (0, 1):  # two rows per byte, the first in the lower half
            nibbles = (weight.int() >> (4 * half)) % 16
            values[half::2] = (nibbles - 16 * (nibbles >= 8)).float()
    else:
        values = weight.float()
    if scale.dim() == 4:
        scale = scale[:, 0, :, 0].repeat_interleave(128, 0)[:rows]
    if scale.dim() == 2:
        blocks = values.reshape(rows, scale.shape[1], -1)
        return (blocks * scale[..., None]).reshape(values.shape)
    return values * (scale if scale.dim() == 0 else scale.reshape(-1, 1))


def nearest(pair, granularity, weight, siblings):
    """Return the nearest values of a format, with scales from the largest magnitudes."""
    if pair == "wfp8_afp8":
        largest = max(w.abs().max() for w in siblings)
        if granularity == "recipe_match_channel_token":
            largest = weight.abs().amax(1, keepdim=True)
        scale = largest / 448
        return (weight / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale
    if pair == "fp8_blocks":  # of 128 x 128; one block is a scale per tensor, which siblings share
        blocks = weight.reshape(weight.shape[0], -1, min(128, weight.shape[1]))
        largest = max(w.abs().max() for w in siblings)
        if weight.numel() > 128 * 128:
            rows = blocks.abs().amax(-1).reshape(-1, 128, blocks.shape[1]).amax(1)
            largest = rows.repeat_interleave(128, 0)[..., None]
        scale = largest / 448
        return ((blocks / scale).to(torch.float8_e4m3fn).float() * scale).reshape(weight.shape)
    if pair.startswith("wint8"):
        scale = weight.abs().amax(1, keepdim=True) / 127
        return (weight / scale).round().clamp(-128, 127) * scale
    width = 64 if granularity == "w_group64" else 128
    blocks = weight.reshape(weight.shape[0], -1, width)
    scale = blocks.abs().amax(-1, keepdim=True) / 7
    return ((blocks / scale).round().clamp(-8, 7) * scale).reshape(weight.shape)


def test_quantized_weights_are_the_nearest_values_of_their_format(checkpoint, tiny):
    for group in checkpoint.formats:
        pair, granularity = group.config.pair.name, group.config.granularity.name
        weights = [tiny.module.get_submodule(name).weight.detach() for name in group.modules]
        for name, weight in zip(group.modules, weights, strict=True):
            stored = dequantized(checkpoint.tensors, name, weight.shape[0])
            expected = nearest(pair, granularity, weight, weights)
            largest = weight.abs().max()
            assert ((stored - weight).abs() <= (expected - weight).abs() + 1e-6 * largest).all()
            differs = (stored - expected).abs() > 1e-6 * largest
            assert differs.float().mean() < 1e-3  # halfway between two values
            assert not torch.equal(stored, weight)


def bits(tensor):
    return tensor.dtype, tensor.shape, tensor.contiguous().flatten().view(torch.uint8).tolist()


def test_unquantized_tensors_are_stored_bit_for_bit(checkpoint, tiny):
    quantized = {f"{name}.weight" for name in checkpoint.quantized}
    source = load_file(Path(SOURCE.location) / WEIGHTS)
    state = {name: source.get(name, tensor) for name, tensor in tiny.module.state_dict().items()}
    assert len([name for name in state if ".visual." in name]) > 20
    for name, tensor in state.items():
        if name in quantized or (name == "lm_head.weight" and name not in checkpoint.tensors):
            continue
        assert bits(checkpoint.tensors[name]) == bits(tensor), name
    scales = {name for name in checkpoint.tensors if name.endswith("_scale")}
    assert {name.rpartition(".")[0] for name in scales} == checkpoint.quantized
    assert set(checkpoint.tensors) - scales <= set(state)


@pytest.fixture
def verify_edited(tiny, checkpoints, tmp_path):
    """Verify the checkpoint of FP8 and INT4 after an edit of its tensors."""
    original = checkpoints["fp8 and int4"]
    scales = {name: original.tensors[f"{name}.input_scale"].item() for name in QKV}

    def verify(edit):
        tensors = dict(original.tensors)
        edit(tensors)
        save_file(tensors, tmp_path / WEIGHTS, metadata={"format": "pt"})
        return verify_checkpoint(tiny, original.formats, scales, tmp_path, Path(SOURCE.location))

    return verify


def changed(name, change):
    def edit(tensors):
        tensors[name] = change(tensors[name]).contiguous()

    return edit


def scaled(name, factor):
    return changed(name, lambda tensor: tensor * factor)


def swapped(one, other):
    def edit(tensors):
        tensors[one], tensors[other] = tensors[other], tensors[one]

    return edit


def removed(name):
    return lambda tensors: tensors.pop(name)


def one_bit(tensor):
    flipped = tensor.clone()
    flipped.view(torch.uint8).flatten()[5] ^= 1
    return flipped


VISION = "model.visual.blocks.0.attn.proj.weight"
NORM = "model.language_model.norm.weight"
UNQUANTIZED = f"{LAYERS}.3.mlp.up_proj.weight"
UNEQUAL = "the export is not the quantized model: "
DEFECTIVE = "; the export is defective, do not use it"
Q, K, V, OUTPUT = *QKV, *OUT
INFINITE = f"{Q} holds values that are not finite"
OTHER = ", which is not quantized, differs from the model"
EDITS = {
    "FP8 scale off by a percent": (
        scaled(f"{K}.weight_scale", 1.01),
        f"{K} deviates by 1.00% of its largest weight",
    ),
    "scale of zero": (
        scaled(f"{Q}.weight_scale", 0),
        f"{Q} deviates by 100.00% of its largest weight",
    ),
    "infinite scale": (scaled(f"{Q}.weight_scale", torch.inf), INFINITE),
    "weights NaN": (
        changed(f"{Q}.weight", lambda t: torch.full(t.shape, torch.nan).to(t.dtype)),
        INFINITE,
    ),
    "INT4 scale doubled": (scaled(f"{OUTPUT}.weight_scale", 2), f"{OUTPUT} deviates"),
    "weights of k and v swapped": (swapped(f"{K}.weight", f"{V}.weight"), f"{K} deviates"),
    "INT4 halves swapped": (
        changed(f"{OUTPUT}.weight", lambda t: ((t.int() >> 4) | (t.int() << 4) & 0xF0).byte()),
        f"{OUTPUT} deviates",
    ),
    "no weight": (removed(f"{Q}.weight"), f"weight of {Q} is missing"),
    "no scale": (removed(f"{OUTPUT}.weight_scale"), f"weight_scale of {OUTPUT} is missing"),
    "weight of another layer": (
        swapped(UNQUANTIZED, f"{LAYERS}.4.mlp.up_proj.weight"),
        UNQUANTIZED + OTHER,
    ),
    "one bit of the vision tower": (changed(VISION, one_bit), VISION + OTHER),
    "no vision tensor": (removed(VISION), VISION + OTHER),
    "norm of another shape": (changed(NORM, lambda t: t[:8]), NORM + OTHER),
    "norm of another dtype": (changed(NORM, torch.Tensor.double), NORM + OTHER),
    "input scale off by a percent": (scaled(f"{Q}.input_scale", 1.01), f"input_scale of {Q} is ["),
    "input scale NaN": (
        scaled(f"{Q}.input_scale", torch.nan),
        f"input_scale of {Q} is [nan], calibrated was ",
    ),
    "no input scale": (
        removed(f"{Q}.input_scale"),
        f"input_scale of {Q} is missing, calibrated was ",
    ),
    "input scale of an INT4 linear": (
        lambda tensors: tensors.update({f"{OUTPUT}.input_scale": torch.tensor(0.5)}),
        f"input_scale of {OUTPUT} is [0.5], calibrated was none",
    ),
}


@pytest.mark.parametrize(("edit", "message"), EDITS.values(), ids=EDITS)
def test_edited_checkpoint_is_refused(verify_edited, tiny, edit, message):
    before = snapshot(tiny.module)
    with pytest.raises(ExportError) as error:
        verify_edited(edit)
    assert str(error.value).startswith(UNEQUAL + message)
    assert str(error.value).endswith(DEFECTIVE)
    assert snapshot(tiny.module) == before


@pytest.fixture
def zeros(tiny):
    """The embedded model with one linear of zeros."""
    weight = tiny.module.get_submodule(OUT[0]).weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.zero_()
        yield tiny
        weight.copy_(kept)


@pytest.mark.parametrize(
    "candidate", ["wfp8_afp8-recipe_match_channel_token", "wint8_afp16", "wint4_afp16"]
)
def test_linear_of_zeros_has_no_error(zeros, calibration, tmp_path, candidate):
    formats = formats_of((candidate, OUT))
    assert export_scheme(zeros, SOURCE, formats, calibration, tmp_path).largest_error == 0.0
    assert not load_file(tmp_path / WEIGHTS)[f"{OUT[0]}.weight"].any()


def test_linear_of_zeros_that_modelopt_stores_as_nan_is_refused(zeros, calibration, tmp_path):
    """ModelOpt 0.47 divides by an FP8 scale per tensor of zero."""
    with pytest.raises(ExportError, match=f"{OUT[0]} holds values that are not finite"):
        export_scheme(zeros, SOURCE, formats_of(("wfp8_afp8", OUT)), calibration, tmp_path)
    assert load_file(tmp_path / WEIGHTS)[f"{OUT[0]}.weight"].float().isnan().all()


def test_experts_that_the_model_joins_are_compared_with_the_source(tiny, tmp_path):
    experts = {"moe_intermediate_size": 8, "shared_expert_intermediate_size": 8, "num_experts": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_experts_per_tok": 1}
    config = Qwen2MoeConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, vocab_size=16, **experts, **heads
    )
    mixture = replace(tiny, module=Qwen2MoeForCausalLM(config))
    for folder in ("source", "export"):
        mixture.module.save_pretrained(tmp_path / folder)
    export, source = tmp_path / "export", tmp_path / "source"
    tensors = load_file(export / WEIGHTS)
    assert verify_checkpoint(mixture, (), {}, export, source).num_identical == len(tensors)
    part = "model.layers.0.mlp.experts.1.up_proj.weight"
    for changed in ({part: tensors[part] + 1}, {}):
        others = {name: tensor for name, tensor in tensors.items() if name != part}
        save_file(others | changed, export / WEIGHTS, {"format": "pt"})
        with pytest.raises(ExportError, match=f": {part}, which is not quantized, differs from"):
            verify_checkpoint(mixture, (), {}, export, source)
