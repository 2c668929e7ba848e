"""Exports that were tampered with in one way, and the lines that say so."""

import math

import pytest
import torch
from edited_export import DOWN, GATE, LAYER, OUT, UP, K, Q, V
from pytest_autoquant.export.vllm_rules import check_export

E4M3, BF16 = torch.float8_e4m3fn, torch.bfloat16
WEIGHT, SCALE, INPUT = (f"{DOWN}.{kind}" for kind in ("weight", "weight_scale", "input_scale"))
UP_SCALE = f"{UP}.weight_scale"
LANGUAGE, TOWER = "model.language_model", "model.visual"
UNSET = "vLLM loads the checkpoint and computes with memory that is not set"
UNSET_SCALE = "is missing: vLLM loads the checkpoint and computes with a scale that is not set"
REFUSED = "of the Qwen3VLForConditionalGeneration of this config: vLLM refuses the checkpoint"
LAST_DOWN = f"{DOWN.replace('.0.', '.5.')}"
GATE_5, Q_5 = (one.replace(".0.", ".5.") for one in (GATE, Q))
LAST_V = f"{V.replace('.0.', '.5.')}"
K_3 = K.replace(".0.", ".3.")


def names_of(it, part):
    return [name for name in it.tensors if part in name]


def set_byte(it, name, byte):
    """Overwrite the first byte of a tensor."""
    it.tensors[name] = it.tensors[name].clone()
    it.tensors[name].view(torch.uint8).view(-1)[0] = byte


def convert(it, name, change):
    it.tensors[name] = change(it.tensors[name]).contiguous()


def store_partial_block(it):
    """Store an output layer of its own, of 2000 outputs, in FP8 blocks of 128 x 128."""
    it.untie()
    it.config["text_config"]["vocab_size"] = 2000
    it.zeros(f"{LANGUAGE}.embed_tokens.weight", BF16, 2000, 128)
    it.zeros("lm_head.weight", E4M3, 2000, 128)
    it.put("lm_head.weight_scale", *[1.0] * 16, shape=[16, 1, 1, 1])
    it.include("lm_head")


def list_layers(it, algorithm):
    """Declare each quantized linear in MIXED_PRECISION."""
    it.set_algorithm("MIXED_PRECISION")
    scaled = (name for name in it.tensors if name.endswith(".weight_scale"))
    layers = {name.removesuffix(".weight_scale"): {"quant_algo": algorithm} for name in scaled}
    it.declared["quantized_layers"] = it.hf_declared["quantized_layers"] = layers


def declare_cache(it, scheme, algorithm):
    it.declared["kv_cache_scheme"] = scheme
    it.hf_declared["kv_cache_quant_algo"] = algorithm


def claim_nvfp4(it):
    it.set_algorithm("NVFP4")
    it.declared["group_size"] = it.hf_declared["group_size"] = 128


#: Recipe, one way to tamper with the export, and the lines that say so.
TAMPERED = {
    "norm": (
        "fp8",
        lambda it: it.drop(f"{LANGUAGE}.norm.weight"),
        [f"tensors: {LANGUAGE}.norm.weight is missing: {UNSET}"],
    ),
    "embedding": (
        "fp8",
        lambda it: it.drop(f"{LANGUAGE}.embed_tokens.weight"),
        [f"tensors: {LANGUAGE}.embed_tokens.weight is missing: {UNSET}"],
    ),
    "linear": (
        "fp8",
        lambda it: it.drop(*names_of(it, OUT)),
        [f"tensors: {OUT}.weight is missing: {UNSET}"],
    ),
    "layer": (
        "fp8",
        lambda it: it.drop(*names_of(it, "layers.3.")),
        [f"tensors: {LANGUAGE}.layers.3.* is missing (11 tensors): {UNSET}"],
    ),
    "vision tensor": (
        "fp8",
        lambda it: it.drop(f"{TOWER}.merger.norm.bias"),
        [f"tensors: {TOWER}.merger.norm.bias is missing: {UNSET}"],
    ),
    "vision tower": (
        "fp8",
        lambda it: it.drop(*names_of(it, TOWER)),
        [f"tensors: {TOWER}.* is missing (39 tensors): {UNSET}"],
    ),
    "tower not excluded": (
        "fp8",
        lambda it: it.include("model.visual*"),
        [
            f"vision: {TOWER}.blocks.0.attn.proj.weight is BF16, and the config declares FP8; "
            f"exclude the tower (and 11 more, the last {TOWER}.merger.linear_fc2.weight)"
        ],
    ),
    "transposed": (
        "fp8",
        lambda it: convert(it, WEIGHT, torch.t),
        [
            f"scales: {WEIGHT} has shape [384, 128]; vLLM needs [128, 384]: it is transposed",
        ],
    ),
    "transposed, not quantized": (
        "plain",
        lambda it: convert(it, WEIGHT, torch.t),
        [f"unquantized: {WEIGHT} has shape [384, 128]; vLLM needs [128, 384]: it is transposed"],
    ),
    "unknown tensor": (
        "fp8",
        lambda it: it.zeros(f"{LAYER}.mlp.router.weight", BF16, 2),
        [f"tensors: {LAYER}.mlp.router.weight is in no module {REFUSED}"],
    ),
    "unknown layer": (
        "fp8",
        lambda it: [
            it.zeros(name.replace("layers.0", "layers.6"), BF16, 2) for name in names_of(it, LAYER)
        ],
        [f"tensors: {LANGUAGE}.layers.6.* (25 tensors) are in no module {REFUSED}"],
    ),
    "names of another architecture": (
        "plain",
        lambda it: it.zeros("model.layers.0.x.weight", BF16, 2),
        [f"tensors: model.layers.0.* (1 tensor) are in no module {REFUSED}"],
    ),
    "norm of an unquantized model": (
        "plain",
        lambda it: it.drop(f"{LANGUAGE}.norm.weight"),
        [
            f"tensors: {LANGUAGE}.norm.weight is missing: vLLM refuses the checkpoint or computes "
            "with memory that is not set"
        ],
    ),
    "scale of an output layer beside the embedding": (
        "fp8",
        lambda it: it.put("lm_head.weight_scale", 1.0),
        [f"tensors: lm_head.weight_scale is in no module {REFUSED}"],
    ),
    "KV scales": (
        "cache",
        lambda it: it.drop(f"{K}.k_scale", f"{V}.v_scale", f"{K_3}.k_scale", f"{LAST_V}.v_scale"),
        [
            f"kv-cache: {K}.k_scale is missing: vLLM takes 1.0",
            f"kv-cache: {V}.v_scale is missing: vLLM takes 1.0",
            f"kv-cache: {K_3}.k_scale is missing: vLLM refuses the checkpoint",
            f"kv-cache: {LAST_V}.v_scale is missing: vLLM takes that of k_proj",
        ],
    ),
    "unknown bias": (
        "fp8",
        lambda it: it.zeros(f"{DOWN}.bias", BF16, 128),
        [
            f"tensors: {DOWN}.bias is skipped by vLLM: the Qwen3VLForConditionalGeneration of this "
            "config has no such bias"
        ],
    ),
    "NaN in E4M3": (
        "fp8",
        lambda it: (set_byte(it, WEIGHT, 0x7F), set_byte(it, f"{OUT}.weight", 0xFF)),
        [f"values: {WEIGHT} holds 1 value that is not finite (and 1 more, the last {OUT}.weight)"],
    ),
    "infinite norm": (
        "fp8",
        lambda it: convert(it, f"{LANGUAGE}.norm.weight", lambda old: old * math.inf),
        [f"values: {LANGUAGE}.norm.weight holds 128 values that are not finite"],
    ),
    "FP8 embedding": (
        "fp8",
        lambda it: it.zeros(f"{LANGUAGE}.embed_tokens.weight", E4M3),
        [
            f"unquantized: {LANGUAGE}.embed_tokens.weight is F8_E4M3; vLLM never quantizes it and "
            "needs a floating dtype"
        ],
    ),
    "no input scale": (
        "fp8",
        lambda it: it.drop(*names_of(it, "input_scale")),
        [f"scales: {INPUT} {UNSET_SCALE} (and 41 more, the last {LAST_V}.input_scale)"],
    ),
    "FP8 as NVFP4 in blocks of 128": (
        "fp8",
        claim_nvfp4,
        [
            "algorithm: group_size is 128; vLLM computes NVFP4 in blocks of 16",
            f"scales: {WEIGHT} is stored as FP8, and the config declares NVFP4 (and 41 more, the "
            f"last {LAST_V}.weight)",
        ],
    ),
    **{
        f"{recipe} as {declared}": (
            recipe,
            lambda it, declared=declared: it.set_algorithm(declared),
            [
                f"scales: {WEIGHT} is stored as {stored}, and the config declares {declared} "
                f"(and {count} more, the last {last}.weight)"
            ],
        )
        for recipe, stored, declared, count, last in (
            ("channel", "FP8_PER_CHANNEL_PER_TOKEN", "FP8", 41, LAST_V),
            ("mxfp8", "MXFP8", "FP8_PB_WO", 41, LAST_V),
            ("w4a16_nvfp4", "W4A16_NVFP4", "FP8", 41, LAST_V),
        )
    },
    "no map of layers": (
        "fp8",
        lambda it: it.set_algorithm("MIXED_PRECISION"),
        [
            "algorithm: quantized_layers names no layer; MIXED_PRECISION needs the algorithm of "
            "each layer"
        ],
    ),
    "no tokenizer": (
        "fp8",
        lambda it: it.companions.pop("tokenizer.json"),
        [
            "files: tokenizer.json is missing, as is tokenizer.model or tekken.json or vocab.json "
            "with merges.txt: vLLM cannot take a prompt"
        ],
    ),
    "no processor": (
        "fp8",
        lambda it: it.companions.pop("preprocessor_config.json"),
        [
            "files: preprocessor_config.json is missing, as is processor_config.json: vLLM cannot "
            "take an image"
        ],
    ),
    "NVFP4 without a global scale": (
        "nvfp4",
        lambda it: it.drop(*(f"{one}.weight_scale_2" for one in (Q, K, V))),
        [f"scales: {K}.weight_scale_2 {UNSET_SCALE} (and 2 more, the last {V}.weight_scale_2)"],
    ),
    "NVFP4 global scales of q, k and v": (
        "nvfp4",
        lambda it: it.put(f"{K}.weight_scale_2", 9.0, shape=[]),
        [
            f"shared-scales: {Q}.weight_scale_2 is not that of k_proj and v_proj: vLLM takes the "
            "largest, and computes wrong numbers"
        ],
    ),
    "NVFP4 without an input scale": (
        "nvfp4",
        lambda it: it.drop(INPUT),
        [f"scales: {INPUT} {UNSET_SCALE}"],
    ),
    "NaN in a block scale": (
        "nvfp4",
        lambda it: set_byte(it, SCALE, 0x7F),
        [f"values: {SCALE} holds 1 value that is not finite"],
    ),
    "negative block scale": (
        "nvfp4",
        lambda it: set_byte(it, SCALE, 0x80 | 0x38),
        [f"scales: {SCALE} holds -1; a scale must be above 0"],
    ),
    "NVFP4 not packed": (
        "w4a16_nvfp4",
        lambda it: convert(it, WEIGHT, lambda old: old.repeat(1, 2)),
        [f"scales: {WEIGHT} has shape [128, 384]; vLLM needs [128, 192]"],
    ),
    "NVFP4 in other blocks": (
        "nvfp4",
        lambda it: [
            convert(it, f"{one}.weight_scale", lambda old: old[:, ::2]) for one in (DOWN, UP)
        ],
        [
            f"scales: {SCALE} is of blocks of 1 x 32; vLLM needs 1 x 16 (and 1 more, the last "
            f"{UP_SCALE})"
        ],
    ),
    "NaN in E8M0": (
        "mxfp8",
        lambda it: set_byte(it, SCALE, 255),
        [f"scales: {SCALE} holds 255, which is NaN in E8M0"],
    ),
    "MXFP8 with an input scale": (
        "mxfp8",
        lambda it: it.put(INPUT, 1.0),
        [f"scales: {INPUT} is present, but MXFP8 has none: vLLM refuses the checkpoint"],
    ),
    "FP8 in other blocks": (
        "blocks",
        lambda it: it.put(SCALE, *[1.0] * 12, shape=[2, 1, 6, 1]),
        [f"scales: {SCALE} is of blocks of 64 x 64; vLLM needs 128 x 128"],
    ),
    "block scale of two dimensions": (
        "blocks",
        lambda it: it.put(SCALE, *[1.0] * 3, shape=[1, 3]),
        [f"scales: {SCALE} has shape [1, 3]; vLLM needs [1, 1, 3, 1]"],
    ),
}


@pytest.mark.parametrize(("recipe", "tamper", "lines"), TAMPERED.values(), ids=TAMPERED)
def test_tampered_export_gives_a_line_per_cause(edited, recipe, tamper, lines):
    export = edited(recipe)
    tamper(export)
    found = check_export(export.save())
    assert [f"{one.rule}: {one.tensor} {one.text}" for one in found.violations] == lines
    assert found.not_checked is None


#: What vLLM tolerates: recipe, edit, warnings.
TOLERATED = {
    "scale in BF16": (
        "one",
        lambda it: convert(it, INPUT, lambda old: old.bfloat16()),
        [
            f"scales: {INPUT} is BF16: vLLM converts it to F32, and its values are finite and "
            "above 0; it is right if the weights were quantized with it"
        ],
    ),
    "scale of shape [1]": ("one", lambda it: convert(it, SCALE, lambda old: old.reshape(1)), []),
    "FP8 scales of q, k and v, gate and up, of one's own": (
        "fp8",
        lambda it: None,
        [
            f"shared-scales: {GATE}.weight_scale is not that of up_proj: vLLM takes the largest, "
            f"which rounds more coarsely (and 5 more, the last {GATE_5}.weight_scale)",
            f"shared-scales: {Q}.weight_scale is not that of k_proj and v_proj: vLLM takes the "
            f"largest, which rounds more coarsely (and 5 more, the last {Q_5}.weight_scale)",
        ],
    ),
    "position table of an older version": (
        "one",
        lambda it: it.put(f"{LAYER}.self_attn.rotary_emb.inv_freq", 1.0, 0.5),
        [f"tensors: {LAYER}.self_attn.rotary_emb.inv_freq is skipped by vLLM"],
    ),
    "norm in FP32": (
        "one",
        lambda it: convert(it, f"{LANGUAGE}.norm.weight", lambda old: old.float()),
        [
            f"unquantized: {LANGUAGE}.norm.weight is F32: vLLM converts it to bfloat16, which the "
            "config declares"
        ],
    ),
    "output layer stored beside the embedding": (
        "one",
        lambda it: it.zeros("lm_head.weight", BF16, 2048, 128),
        ["tensors: lm_head.weight is skipped by vLLM"],
    ),
    "partial block of outputs": (
        "blocks",
        store_partial_block,
        [
            "scales: lm_head.weight has 2000 outputs, of which vLLM takes a partial block since "
            "0.29 only"
        ],
    ),
    "layers in MXFP8 among others": (
        "mxfp8",
        lambda it: list_layers(it, "MXFP8"),
        [
            f"algorithm: {LANGUAGE}.layers.0.mlp.down_proj.weight is 'MXFP8', which vLLM loads in "
            f"MIXED_PRECISION since 0.25 only (and 41 more, the last {LAST_V}.weight)"
        ],
    ),
    **{
        f"{algorithm} KV cache": (
            "one",
            lambda it, scheme=scheme, algorithm=algorithm: declare_cache(it, scheme, algorithm),
            [f"kv-cache: kv_cache_scheme is {algorithm}: {effect}"],
        )
        for scheme, algorithm, effect in (
            (
                {"type": "float", "num_bits": 4},
                "NVFP4",
                "vLLM takes it, and its scales are not checked here",
            ),
            ("int8", "INT8", "vLLM warns and keeps the cache in the model's dtype"),
        )
    },
    "NVFP4 read as weight-only": (
        "nvfp4",
        lambda it: it.set_algorithm("W4A16_NVFP4"),
        [
            f"scales: {INPUT} is not used: W4A16_NVFP4 does not quantize inputs (and 41 more, the "
            f"last {LAST_V}.input_scale)"
        ],
    ),
}
NO_TEMPLATE = (
    "files: chat_template.jinja is missing: vLLM refuses chat requests, unless it is given a "
    "template"
)


@pytest.mark.parametrize(("recipe", "edit", "lines"), TOLERATED.values(), ids=TOLERATED)
def test_what_vllm_tolerates_is_a_warning(edited, recipe, edit, lines):
    export = edited(recipe)
    edit(export)
    found = check_export(export.save())
    assert found.violations == ()
    warnings = [f"{one.rule}: {one.tensor} {one.text}" for one in found.warnings]
    assert sorted(warnings) == sorted([NO_TEMPLATE, *lines])


def test_chat_template_of_the_source_must_be_in_the_export(edited, tmp_path):
    folder = edited("one").save()
    assert check_export(folder, source=tmp_path).warnings == ()
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    (found,) = check_export(folder, source=tmp_path).violations
    assert (found.rule, found.tensor, found.text) == (
        "files",
        "chat_template.jinja",
        "is missing, and the source has one: vLLM refuses chat requests",
    )
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    assert check_export(folder, source=tmp_path).violations == ()
