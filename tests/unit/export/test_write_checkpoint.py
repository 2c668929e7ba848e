"""Real exports by ModelOpt on the CPU: read back on their own, tampered with, never half there."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from pytest_autoquant.calibration.batches import calibration_data
from pytest_autoquant.calibration.captions import load_captions
from pytest_autoquant.errors import MeasurementError
from pytest_autoquant.export import write_checkpoint as export_module
from pytest_autoquant.export.apply_scheme import Decision
from pytest_autoquant.export.write_checkpoint import (
    Exported,
    export,
    exported_as,
    refusal,
    replacing,
)
from pytest_autoquant.formats.effective_config import resolve
from pytest_autoquant.grid.vocabulary import load_vocabulary
from pytest_autoquant.models.loading import load_model
from pytest_autoquant.models.registry import REGISTRY
from safetensors.torch import load_file, save_file

CPU = torch.device("cpu")
VOCABULARY = load_vocabulary()
LAYERS = "model.language_model.layers"
QKV = tuple(f"{LAYERS}.0.self_attn.{each}_proj" for each in "qkv")
OUT = (f"{LAYERS}.0.self_attn.o_proj",)
GATE_UP = (f"{LAYERS}.1.mlp.gate_proj", f"{LAYERS}.1.mlp.up_proj")
DOWN = (f"{LAYERS}.1.mlp.down_proj",)
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny():
    return load_model(REGISTRY["tiny-qwen3-vl"], device=CPU, dtype=torch.float32)


@pytest.fixture(scope="module")
def batches(tiny):
    captions = load_captions(None, "small")
    rows = tiny.tokenize(captions.lines[:4])
    return calibration_data(captions, rows, batch_size=4, score_size=4).batches


def config(pair, granularity="default"):
    return resolve(VOCABULARY.pairs[pair], VOCABULARY.granularities[granularity])


def decide(**groups):
    """Decide by pair: ``wfp8_afp8=(QKV, OUT)``; the overlay may follow two underscores."""
    return tuple(
        Decision(modules=modules, config=config(*name.split("__")))
        for name, members in groups.items()
        for modules in members
    )


RECIPES = {
    "fp8 mix": decide(wfp8_afp8=(QKV, OUT, GATE_UP)),
    "fp8 per channel": decide(wfp8_afp8__recipe_match_channel_token=(QKV, GATE_UP)),
    "fp8 and int4": decide(wfp8_afp8=(QKV,), wint4_afp16=(OUT, GATE_UP)),
    "int4 in blocks of 64": decide(wint4_afp16__w_group64=(DOWN,)),
    "int8 weights": decide(wint8_afp16=(QKV, DOWN)),
    "int8": decide(wint8_aint8=(QKV, GATE_UP)),
    "nothing": (),
}
ALGORITHMS = {
    "fp8 mix": "FP8",
    "fp8 per channel": "FP8_PER_CHANNEL_PER_TOKEN",
    "fp8 and int4": "MIXED_PRECISION",
    "int4 in blocks of 64": "W4A16_AWQ",
    "int8 weights": "W8A16",
    "int8": "W8A8_SQ_PER_CHANNEL",
}


@dataclass(frozen=True)
class Made:
    """A finished export: its decisions, its folder, what was said of it, its tensors."""

    decisions: tuple[Decision, ...]
    folder: Path
    said: Exported
    tensors: dict[str, torch.Tensor]

    @property
    def quantized(self):
        return {name: d.config for d in self.decisions for name in d.modules}


@pytest.fixture(scope="module")
def exports(tiny, batches, tmp_path_factory):
    """Every recipe exported once."""
    made = {}
    for name, decisions in RECIPES.items():
        folder = tmp_path_factory.mktemp("export")
        said = export(tiny, REGISTRY["tiny-qwen3-vl"], decisions, batches, folder)
        made[name] = Made(decisions, folder, said, load_file(folder / WEIGHTS))
    return made


@pytest.fixture(params=RECIPES)
def made(request, exports):
    return exports[request.param]


def same_bits(a, b):
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(
            a.contiguous().flatten().view(torch.uint8), b.contiguous().flatten().view(torch.uint8)
        )
    )


# What is in a checkpoint


def test_a_checkpoint_is_complete(made):
    names = {path.name for path in made.folder.iterdir()}
    needed = {"config.json", WEIGHTS, "generation_config.json", "tokenizer.json"}
    assert needed | {"tokenizer_config.json"} <= names
    assert ("hf_quant_config.json" in names) == bool(made.decisions)
    config = json.loads((made.folder / "config.json").read_text())
    assert config["architectures"] == ["Qwen3VLForConditionalGeneration"]


@pytest.mark.parametrize(("name", "algorithm"), ALGORITHMS.items())
def test_the_quantization_is_named_in_both_configs(exports, name, algorithm):
    folder = exports[name].folder
    theirs = json.loads((folder / "hf_quant_config.json").read_text())["quantization"]
    assert theirs["quant_algo"] == algorithm
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "modelopt"
    if algorithm == "MIXED_PRECISION":
        found = {n: each["quant_algo"] for n, each in theirs["quantized_layers"].items()}
        assert found == {
            **dict.fromkeys(QKV, "FP8"),
            **dict.fromkeys((*OUT, *GATE_UP), "W4A16_AWQ"),
        }


def test_of_nothing_quantized_no_config_speaks(exports):
    config = json.loads((exports["nothing"].folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert exports["nothing"].said.num_quantized == 0
    assert exports["nothing"].said.largest_error == 0.0


def test_what_is_said_of_a_checkpoint_is_so(made, tiny):
    size = sum(p.numel() * 4 for p in tiny.module.parameters())
    kept = [n for n in made.tensors if n.rpartition(".")[0] not in made.quantized]
    assert made.said == Exported(
        bytes_before=size,
        bytes_after=(made.folder / WEIGHTS).stat().st_size,
        num_quantized=len(made.quantized),
        largest_error=made.said.largest_error,
        num_identical=made.said.num_identical,
    )
    assert 0 <= made.said.largest_error <= 1e-3
    tied = {"lm_head.weight"} - set(made.tensors)
    assert made.said.num_identical == len(kept)
    assert len(tiny.module.state_dict()) == len(kept) + len(made.quantized) + len(tied)


def test_quantizing_makes_a_checkpoint_smaller(exports):
    saved = {
        name: exports["nothing"].said.bytes_after - each.said.bytes_after
        for name, each in exports.items()
    }
    numel = {
        name: sum(each.tensors[f"{n}.weight"].numel() for n in each.quantized)
        for name, each in exports.items()
    }
    assert saved["fp8 mix"] == pytest.approx(3 * numel["fp8 mix"], rel=0.05)
    assert saved["int8"] == pytest.approx(3 * numel["int8"], rel=0.05)


# Read back independently


def own_dequantized(tensors, name, rows):
    """A stored linear in fp32: one scale, one per row, or one per row and block."""
    weight, scale = tensors[f"{name}.weight"], tensors[f"{name}.weight_scale"].float()
    if weight.dtype == torch.uint8:
        values = torch.empty(rows, weight.shape[1])
        for half in (0, 1):  # two rows to a byte, the lower half the first
            nibbles = (weight.int() >> (4 * half)) % 16
            values[half::2] = (nibbles - 16 * (nibbles >= 8)).float()
    else:
        values = weight.float()
    if scale.dim() == 2:
        blocks = values.reshape(rows, scale.shape[1], -1)
        return (blocks * scale[..., None]).reshape(values.shape)
    return values * (scale if scale.dim() == 0 else scale.reshape(-1, 1))


def own_quantized(pair, granularity, weight, siblings):
    """The nearest values that a format can take, scales from the largest magnitudes."""
    if pair == "wfp8_afp8":
        largest = max(w.abs().max() for w in siblings)
        if granularity == "recipe_match_channel_token":
            largest = weight.abs().amax(1, keepdim=True)
        scale = largest / 448
        return (weight / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale
    if pair.startswith("wint8"):
        scale = weight.abs().amax(1, keepdim=True) / 127
        return (weight / scale).round().clamp(-128, 127) * scale
    width = 64 if granularity == "w_group64" else 128
    blocks = weight.reshape(weight.shape[0], -1, width)
    scale = blocks.abs().amax(-1, keepdim=True) / 7
    return ((blocks / scale).round().clamp(-8, 7) * scale).reshape(weight.shape)


def test_every_quantized_weight_is_the_nearest_that_its_format_can_take(made, tiny):
    for decision in made.decisions:
        weights = [tiny.module.get_submodule(n).weight.detach() for n in decision.modules]
        for name, weight in zip(decision.modules, weights, strict=True):
            found = own_dequantized(made.tensors, name, weight.shape[0])
            expected = own_quantized(
                decision.config.pair.name, decision.config.granularity.name, weight, weights
            )
            largest = weight.abs().max()
            assert ((found - weight).abs() <= (expected - weight).abs() + 1e-6 * largest).all()
            differs = (found - expected).abs() > 1e-6 * largest
            assert differs.float().mean() < 1e-3  # halfway between two values
            assert not torch.equal(found, weight)


def test_siblings_of_one_scale_each_are_stored_with_the_same(exports, tiny):
    tensors = exports["fp8 mix"].tensors
    for group in (QKV, GATE_UP):
        largest = max(tiny.module.get_submodule(n).weight.abs().max().item() for n in group)
        (scale,) = {tensors[f"{name}.weight_scale"].item() for name in group}
        assert scale == pytest.approx(largest / 448, rel=1e-6)
        assert len({tensors[f"{name}.input_scale"].item() for name in group}) == 1


def test_everything_else_vision_tower_included_is_there_bit_for_bit(made, tiny):
    quantized = {f"{name}.weight" for name in made.quantized}
    state = tiny.module.state_dict()
    vision = [name for name in state if ".visual." in name]
    assert len(vision) > 20
    for name, tensor in state.items():
        if name in quantized or (name == "lm_head.weight" and name not in made.tensors):
            continue
        assert same_bits(made.tensors[name], tensor), name
    scales = {n for n in made.tensors if n.endswith("_scale")}
    assert {n.rpartition(".")[0] for n in scales} == set(made.quantized)
    assert set(made.tensors) - scales <= set(state)


# The model afterwards


def snapshot(module):
    parts = {
        name: (type(part), {key: id(value) for key, value in vars(part).items()})
        for name, part in module.named_modules()
    }
    weights = {
        name: (id(p), p.requires_grad, p.dtype, p.detach().numpy().tobytes())
        for name, p in module.named_parameters(remove_duplicate=False)
    }
    return parts, weights, dict(vars(module.config)), dict(vars(module.generation_config))


@pytest.mark.parametrize("recipe", ["fp8 and int4", "nothing"])
@pytest.mark.parametrize("architectures", [None, ["Qwen3VLForConditionalGeneration"], ["Other"]])
def test_the_model_is_afterwards_what_it_was(
    tiny, batches, tmp_path, monkeypatch, recipe, architectures
):
    monkeypatch.setattr(tiny.module.config, "architectures", architectures)
    before = snapshot(tiny.module)
    export(tiny, REGISTRY["tiny-qwen3-vl"], RECIPES[recipe], batches, tmp_path)
    assert snapshot(tiny.module) == before
    assert tiny.module.config.architectures is architectures
    assert tiny.module.lm_head.weight is tiny.module.get_input_embeddings().weight
    written = json.loads((tmp_path / "config.json").read_text())["architectures"]
    assert written == ["Qwen3VLForConditionalGeneration"]


def test_the_model_is_what_it_was_also_when_modelopt_raises(tiny, batches, tmp_path, monkeypatch):
    import modelopt.torch.export

    def broken(module, **given):
        with torch.no_grad():
            module.extra = torch.nn.Linear(1, 1)
        raise RuntimeError("no\nsuch\nexport")

    monkeypatch.setattr(modelopt.torch.export, "export_hf_checkpoint", broken)
    before = snapshot(tiny.module)
    with pytest.raises(MeasurementError, match="ModelOpt cannot export this: RuntimeError: no"):
        export(tiny, REGISTRY["tiny-qwen3-vl"], RECIPES["fp8 mix"], batches, tmp_path)
    assert snapshot(tiny.module) == before


def test_a_qwen2_5_vl_is_exported_where_its_processor_cannot_be_built(tmp_path):
    source = REGISTRY["tiny-qwen2.5-vl"]
    model = load_model(source, device=CPU, dtype=torch.float32)
    captions = load_captions(None, "small")
    rows = model.tokenize(captions.lines[:4])
    batches = calibration_data(captions, rows, batch_size=4, score_size=4).batches
    modules = (model.linears[0].name,)
    said = export(model, source, decide(wfp8_afp8=(modules,)), batches, tmp_path)
    assert (said.num_quantized, said.num_identical) == (1, len(model.module.state_dict()) - 2)
    theirs = Path(source.location) / "preprocessor_config.json"
    assert (tmp_path / theirs.name).read_bytes() == theirs.read_bytes()


# Tampering


@pytest.fixture
def tampered(tiny, batches, tmp_path, monkeypatch):
    """Export while something changes the tensors that ModelOpt wrote, before they are read back."""
    written = export_module._export

    def run(change, recipe="fp8 and int4"):
        def between(module, folder):
            written(module, folder)
            tensors = load_file(folder / WEIGHTS)
            change(tensors)
            save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

        monkeypatch.setattr(export_module, "_export", between)
        return export(tiny, REGISTRY["tiny-qwen3-vl"], RECIPES[recipe], batches, tmp_path)

    return run


def changed(name, change):
    def apply(tensors):
        tensors[name] = change(tensors[name]).contiguous()

    return apply


def swapped(one, other):
    def apply(tensors):
        tensors[one], tensors[other] = tensors[other], tensors[one]

    return apply


def one_bit(tensor):
    flipped = tensor.clone()
    flipped.view(torch.uint8).flatten()[5] ^= 1
    return flipped


VISION = "model.visual.blocks.0.attn.proj.weight"
NORM = "model.language_model.norm.weight"
NOT_QUANTIZED = f"{LAYERS}.3.mlp.up_proj.weight"
TAMPERED = {
    "an fp8 scale doubled": (changed(f"{QKV[0]}.weight_scale", lambda t: t * 2), QKV[0]),
    "an fp8 scale off by a percent": (
        changed(f"{QKV[1]}.weight_scale", lambda t: t * 1.01),
        QKV[1],
    ),
    "an infinite scale": (changed(f"{QKV[0]}.weight_scale", lambda t: t * torch.inf), QKV[0]),
    "a scale of zero": (changed(f"{QKV[0]}.weight_scale", lambda t: t * 0), QKV[0]),
    "an int4 scale doubled": (changed(f"{OUT[0]}.weight_scale", lambda t: t * 2), OUT[0]),
    "a weight of a sibling": (swapped(f"{QKV[1]}.weight", f"{QKV[2]}.weight"), QKV[1]),
    "int4 halves swapped": (
        changed(f"{OUT[0]}.weight", lambda t: ((t.int() >> 4) | (t.int() << 4) & 0xF0).byte()),
        OUT[0],
    ),
    "an unquantized weight of another layer": (
        swapped(NOT_QUANTIZED, f"{LAYERS}.4.mlp.up_proj.weight"),
        NOT_QUANTIZED,
    ),
    "a bit of the vision tower": (changed(VISION, one_bit), VISION),
    "a bit of a norm": (changed(NORM, one_bit), NORM),
    "a norm of another shape": (changed(NORM, lambda t: t[:8]), NORM),
    "no weight": (lambda tensors: tensors.pop(f"{QKV[0]}.weight"), QKV[0]),
    "no scale": (lambda tensors: tensors.pop(f"{OUT[0]}.weight_scale"), OUT[0]),
    "no vision tensor": (lambda tensors: tensors.pop(VISION), VISION),
    "a weight stored in fp32": (
        changed(f"{QKV[0]}.weight", lambda t: t.float()[:, :64]),
        QKV[0],
    ),
}


@pytest.mark.parametrize(("change", "named"), TAMPERED.values(), ids=TAMPERED)
def test_a_checkpoint_that_is_not_the_quantized_model_is_refused(tampered, tiny, change, named):
    before = snapshot(tiny.module)
    with pytest.raises(MeasurementError) as caught:
        tampered(change)
    assert named in str(caught.value)
    assert str(caught.value).startswith("the export ")
    assert snapshot(tiny.module) == before


NOT_FINITE = (
    "the export is not the quantized model: {} holds values that are not finite; this is a defect "
    "of the export, do not use it"
)
NOT_CALIBRATED = (
    f"the export is not the quantized model: input_scale of {QKV[0]} {{}}, {{:.6g}} was "
    "calibrated; do not use it"
)
COMPUTES_ELSE = {
    "a scale that is no number": (
        changed(f"{QKV[0]}.weight_scale", lambda t: t * torch.nan),
        lambda _: NOT_FINITE.format(QKV[0]),
    ),
    "weights that are no numbers": (
        changed(f"{QKV[0]}.weight", lambda t: torch.full(t.shape, torch.nan).to(t.dtype)),
        lambda _: NOT_FINITE.format(QKV[0]),
    ),
    "a norm in another dtype": (
        changed(NORM, lambda t: t.double()),
        lambda _: f"the export changed {NORM}, which is not quantized; do not use it",
    ),
    "an input scale doubled": (
        changed(f"{QKV[0]}.input_scale", lambda t: t * 2),
        lambda scale: NOT_CALIBRATED.format(f"is [{2 * scale}]", scale),
    ),
    "an input scale off by a percent": (
        changed(f"{QKV[0]}.input_scale", lambda t: t * 1.01),
        lambda scale: NOT_CALIBRATED.format(f"is [{(torch.tensor(scale) * 1.01).item()}]", scale),
    ),
    "an input scale that is no number": (
        changed(f"{QKV[0]}.input_scale", lambda t: t * torch.nan),
        lambda scale: NOT_CALIBRATED.format("is [nan]", scale),
    ),
    "no input scale": (
        lambda tensors: tensors.pop(f"{QKV[0]}.input_scale"),
        lambda scale: NOT_CALIBRATED.format("is missing", scale),
    ),
}


@pytest.mark.parametrize(("change", "said"), COMPUTES_ELSE.values(), ids=COMPUTES_ELSE)
def test_a_checkpoint_that_computes_something_else_is_refused(tampered, exports, change, said):
    scale = exports["fp8 and int4"].tensors[f"{QKV[0]}.input_scale"].item()
    with pytest.raises(MeasurementError) as caught:
        tampered(change)
    assert str(caught.value) == said(scale)


@pytest.fixture
def zeros(tiny):
    """A model with a linear of zeros."""
    weight = tiny.module.get_submodule(OUT[0]).weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.zero_()
        yield tiny
        weight.copy_(kept)


@pytest.mark.parametrize(
    "candidate",
    ["wfp8_afp8__recipe_match_channel_token", "wint8_aint8", "wint8_afp16", "wint4_afp16"],
)
def test_a_linear_of_zeros_deviates_by_nothing(zeros, batches, tmp_path, candidate):
    decisions = decide(**{candidate: (OUT,)})
    said = export(zeros, REGISTRY["tiny-qwen3-vl"], decisions, batches, tmp_path)
    assert said.largest_error == 0.0
    assert not load_file(tmp_path / WEIGHTS)[f"{OUT[0]}.weight"].any()


def test_a_linear_of_zeros_that_modelopt_stores_as_no_numbers_is_refused(zeros, batches, tmp_path):
    """ModelOpt 0.45 divides by an FP8 scale per tensor of zero and stores NaN."""
    with pytest.raises(MeasurementError) as caught:
        export(zeros, REGISTRY["tiny-qwen3-vl"], decide(wfp8_afp8=(OUT,)), batches, tmp_path)
    assert str(caught.value) == NOT_FINITE.format(OUT[0])
    assert load_file(tmp_path / WEIGHTS)[f"{OUT[0]}.weight"].float().isnan().all()


def test_without_space_nothing_is_begun(tiny, batches, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    needed = sum(p.numel() * 4 for p in tiny.module.parameters()) * 1.1
    monkeypatch.setattr(export_module, "_export", None)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, int(needed) - 1))
    with pytest.raises(MeasurementError) as caught:
        export(tiny, REGISTRY["tiny-qwen3-vl"], RECIPES["fp8 mix"], batches, tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: 0.0 GB are free, the export of tiny-qwen3-vl may take 0.0; free some, or "
        "give another --aq-report-dir"
    )
    assert list(tmp_path.iterdir()) == []


# What a config is exported as

COMPUTED = {
    "FP8": "fp8 weights (a scale per tensor) and fp8 activations (a scale per tensor)",
    "FP8_PER_CHANNEL_PER_TOKEN": (
        "fp8 weights (a scale per output channel) and fp8 activations (a scale per token)"
    ),
    "W4A16_AWQ": "int4 weights (a scale per block) and fp16 activations (a scale per nothing)",
    "W8A8_SQ_PER_CHANNEL": (
        "int8 weights (a scale per output channel) and int8 activations (a scale per tensor)"
    ),
}


@pytest.mark.parametrize(
    ("pair", "algorithm"),
    [
        ("wfp8_afp8", "FP8"),
        ("wint8_aint8", "W8A8_SQ_PER_CHANNEL"),
        ("wint8_afp16", "W8A16"),
        ("wint4_afp16", "W4A16_AWQ"),
    ],
)
def test_a_pair_with_an_export_of_its_own_may_be_exported(pair, algorithm):
    assert exported_as(config(pair), CPU) == algorithm
    assert refusal(config(pair), CPU) is None


@pytest.mark.parametrize(
    ("pair", "algorithm"),
    [
        ("wint4_aint8", "W4A16_AWQ"),
        ("wint4_afp8", "W4A16_AWQ"),
        ("wint4_aint4", "W4A16_AWQ"),
        ("wint8_afp8", "W8A8_SQ_PER_CHANNEL"),
        ("wint8_aint4", "W8A8_SQ_PER_CHANNEL"),
        ("wfp8_afp16", "FP8"),
        ("wfp8_aint8", "FP8"),
    ],
)
def test_a_hybrid_whose_export_would_stand_for_something_else_is_refused(pair, algorithm):
    assert refusal(config(pair), CPU) == (
        f"ModelOpt exports {pair} with default as {algorithm}, which a runtime computes with "
        f"{COMPUTED[algorithm]}"
    )


@pytest.mark.parametrize(
    ("pair", "granularity"),
    [
        *((pair, "default") for pair in ("wfp16_afp8", "wfp16_aint8")),
        ("wint4_afp16", "w_per_out_channel"),
    ],
)
def test_what_modelopt_has_no_export_for_is_refused(pair, granularity):
    assert exported_as(config(pair, granularity), CPU) is None
    assert refusal(config(pair, granularity), CPU) == (
        f"ModelOpt has no export for {pair} with {granularity} that could be verified"
    )


@pytest.mark.parametrize("pair", list(VOCABULARY.pairs))
def test_no_built_in_pair_may_be_exported_as_another(pair):
    algorithm, why = exported_as(config(pair), CPU), refusal(config(pair), CPU)
    chosen = VOCABULARY.pairs[pair]
    stands_for = export_module.STANDS_FOR.get(algorithm, ())
    dtypes = tuple(dtype for dtype, _ in stands_for)
    assert (why is None) == (dtypes == (chosen.weight, chosen.activation))


@pytest.mark.parametrize(
    ("granularity", "algorithm"),
    [
        ("a_per_token_dynamic", "FP8"),
        ("w_per_out_channel", "FP8_PER_CHANNEL_PER_TOKEN"),
        ("w_per_in_channel", "FP8"),
        ("a_per_hidden_channel", "FP8"),
    ],
)
def test_an_overlay_that_a_runtime_would_not_compute_is_refused(granularity, algorithm):
    """FP8 means one static scale per tensor; per channel means activations per token."""
    assert refusal(config("wfp8_afp8", granularity), CPU) == (
        f"ModelOpt exports wfp8_afp8 with {granularity} as {algorithm}, which a runtime computes "
        f"with {COMPUTED[algorithm]}"
    )


@pytest.mark.parametrize(
    ("pair", "granularity"),
    [
        ("wint8_afp16", "w_group128"),
        ("wint8_afp16", "w_per_in_channel"),
        ("wint8_aint8", "w_group64"),
        ("wint8_aint8", "a_per_hidden_channel"),
    ],
)
def test_what_an_export_would_fail_on_is_refused_before(tiny, batches, tmp_path, pair, granularity):
    decisions = (Decision(modules=OUT, config=config(pair, granularity)),)
    with pytest.raises(MeasurementError):
        export(tiny, REGISTRY["tiny-qwen3-vl"], decisions, batches, tmp_path)
    assert refusal(config(pair, granularity), CPU) is not None


def test_other_blocks_of_int4_are_still_int4():
    assert refusal(config("wint4_afp16", "w_group64"), CPU) is None
    assert refusal(config("wfp8_afp8", "recipe_match_channel_token"), CPU) is None


# Whole or not at all


@pytest.fixture
def target(tmp_path):
    return tmp_path / "model" / "schemes" / "mine"


@pytest.fixture
def old(target):
    """An export that is there already."""
    target.mkdir(parents=True)
    (target / "config.json").write_text("old")
    (target / "deep").mkdir()
    (target / "deep" / "x").write_text("old")
    return target


def fill(target, error=None, *, may_replace=True, meanwhile=lambda: None):
    """Fill a folder, and raise before it is complete if told to."""
    with replacing(target, may_replace=may_replace) as folder:
        (folder / "a").write_text("new")
        meanwhile()
        if error is not None:
            raise error


def contents(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()
    }


OLD = {"config.json": "old", "deep/x": "old"}


def alone(target):
    return [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_folder_appears_when_it_is_complete(target):
    with replacing(target, may_replace=False) as folder:
        (folder / "a").write_text("new")
        assert folder.parent == target.parent
        assert not target.exists()
    assert contents(target) == {"a": "new"}
    assert alone(target)
    assert target.stat().st_mode & 0o777 == 0o755


def test_an_existing_folder_is_refused_before_anything_and_stays_as_it_is(old):
    with pytest.raises(MeasurementError) as caught, replacing(old, may_replace=False):
        pytest.fail("it was begun")
    assert str(caught.value) == (
        f"{old}: exists; replace it with --aq-replace-export, or move it away"
    )
    assert contents(old) == OLD
    assert alone(old)


def test_an_existing_folder_is_replaced_only_when_the_new_one_is_complete(old):
    with replacing(old, may_replace=True) as folder:
        (folder / "a").write_text("new")
        assert contents(old) == OLD
    assert contents(old) == {"a": "new"}
    assert alone(old)


def test_there_may_be_nothing_to_replace(target):
    with replacing(target, may_replace=True) as folder:
        (folder / "a").write_text("new")
    assert contents(target) == {"a": "new"}


@pytest.mark.parametrize(
    "error", [MeasurementError("mine"), ZeroDivisionError(), KeyboardInterrupt()]
)
def test_an_exception_inside_leaves_the_old_one_and_nothing_else(old, error):
    with pytest.raises(type(error)) as caught:
        fill(old, error)
    assert caught.value is error
    assert contents(old) == OLD
    assert alone(old)


def test_an_exception_inside_leaves_nothing_where_nothing_was(target):
    with pytest.raises(ZeroDivisionError):
        fill(target, ZeroDivisionError(), may_replace=False)
    assert list(target.parent.iterdir()) == []


def test_a_disk_that_fills_up_is_told_by_the_target(old):
    with pytest.raises(MeasurementError) as caught:
        fill(old, OSError(28, "No space left on device"))
    assert str(caught.value) == f"{old}: cannot be written: No space left on device"
    assert contents(old) == OLD
    assert alone(old)


def test_an_error_without_a_number_is_told_in_its_words(old):
    with pytest.raises(MeasurementError) as caught:
        fill(old, OSError("custom words"))
    assert str(caught.value) == f"{old}: cannot be written: custom words"


def test_a_folder_that_cannot_take_the_place_of_the_old_one_leaves_it_there(old, monkeypatch):
    rename = Path.rename

    def fails(path, to):
        if Path(to) == old and not path.parent.name.startswith(".mine.old."):
            raise OSError(5, "Input/output error")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(MeasurementError, match="cannot be written: Input/output error"):
        fill(old)
    assert contents(old) == OLD
    assert alone(old)


def test_a_folder_that_came_meanwhile_is_not_replaced(target):
    def other():
        target.mkdir()
        (target / "theirs").write_text("other")

    with pytest.raises(MeasurementError, match="exists"):
        fill(target, may_replace=False, meanwhile=other)
    assert contents(target) == {"theirs": "other"}


KILLED = """
import os, signal, sys
from pathlib import Path
from pytest_autoquant.export.write_checkpoint import replacing
with replacing(Path(sys.argv[1]), may_replace=True) as folder:
    (folder / "half").write_text("new")
    print("begun", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_the_old_one_under_its_name(old):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(old)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "begun\n")
    assert contents(old) == OLD
    with replacing(old, may_replace=True) as folder:
        (folder / "a").write_text("new")
    assert contents(old) == {"a": "new"}


def test_a_file_in_the_way_of_the_folder_is_told(tmp_path):
    (tmp_path / "file").write_text("x")
    target = tmp_path / "file" / "mine"
    with pytest.raises(MeasurementError, match="cannot be written: ") as caught:
        fill(target)
    assert str(caught.value).startswith(f"{target}: ")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc")
def test_a_file_system_that_takes_no_folder_is_told_also_to_root():
    target = Path("/proc/autoquant/schemes/mine")
    with pytest.raises(MeasurementError, match=f"^{target}: cannot be written: "):
        fill(target)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only_is_told(old):
    old.parent.chmod(0o555)
    try:
        with pytest.raises(MeasurementError, match="cannot be written: Permission denied"):
            fill(old)
    finally:
        old.parent.chmod(0o755)
    assert contents(old) == OLD
