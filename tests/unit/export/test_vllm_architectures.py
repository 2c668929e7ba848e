"""The tensors that each architecture must have, compared with transformers and with exports."""

import shutil

import pytest
import torch
import transformers
from edited_export import COMPANIONS, EditedExport, violations_of
from pytest_autoquant.export.vllm_rules import read_export
from pytest_autoquant.export.vllm_rules.architecture.config_numbers import ConfigNumbers
from pytest_autoquant.export.vllm_rules.architecture.known import ARCHITECTURES
from pytest_autoquant.export.vllm_rules.rules import problems
from pytest_autoquant.models.registry import REGISTRY

SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
BIASES = {"attention_bias": True}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 80,
}
VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "out_hidden_size": 64,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0, 1],
}
#: Biases that transformers has and vLLM does not, by case: linears of the attention.
WITHOUT_BIAS_IN_VLLM = {"qwen3, biases": "o", "gemma, biases": "qkvo"}
#: Class of the config, and what it is given, by case.
CONFIGS = {
    "llama": ("LlamaConfig", SIZES),
    "llama, biases, tied": (
        "LlamaConfig",
        {**SIZES, **BIASES, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "mistral": ("MistralConfig", SIZES),
    "qwen2": ("Qwen2Config", {**SIZES, "head_dim": 16}),
    "qwen2 moe": ("Qwen2MoeConfig", {**SIZES, "head_dim": 16, **EXPERTS, "mlp_only_layers": [1]}),
    "qwen3": ("Qwen3Config", SIZES),
    "qwen3, biases": ("Qwen3Config", {**SIZES, **BIASES}),
    "qwen3 moe": ("Qwen3MoeConfig", {**SIZES, **EXPERTS, "decoder_sparse_step": 2}),
    "gemma": ("GemmaConfig", SIZES),
    "gemma, biases": ("GemmaConfig", {**SIZES, **BIASES}),
    "gemma 2": ("Gemma2Config", SIZES),
    "gemma 2, biases": ("Gemma2Config", {**SIZES, **BIASES}),
    "gemma 3": ("Gemma3TextConfig", SIZES),
    "qwen2.5-vl": (
        "Qwen2_5_VLConfig",
        {"text_config": {**SIZES, "head_dim": 16}, "vision_config": VISION},
    ),
    "qwen2.5-vl, tied": (
        "Qwen2_5_VLConfig",
        {
            "text_config": {**SIZES, "head_dim": 16},
            "vision_config": VISION,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3-vl": ("Qwen3VLConfig", {"text_config": SIZES, "vision_config": VISION}),
}


def build(name, given, device):
    config = getattr(transformers, name)(**given, pad_token_id=0)
    is_text = "text_config" not in given
    auto = (
        transformers.AutoModelForCausalLM if is_text else transformers.AutoModelForImageTextToText
    )
    torch.manual_seed(0)
    with torch.device(device):
        return auto.from_config(config, dtype=torch.bfloat16).eval()


def stored_shapes(module):
    """Return the shapes that a checkpoint has: tied tensors once, experts one by one."""
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    if module.config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    for name in [name for name in shapes if ".experts." in name]:
        count, outputs, inputs = shapes.pop(name)
        stem, _, last = name.rpartition(".")
        parts = ("gate_proj", "up_proj") if last == "gate_up_proj" else ("down_proj",)
        for part in parts:
            shape = (outputs // len(parts), inputs)
            shapes |= {f"{stem}.{i}.{part}.weight": shape for i in range(count)}
    return shapes


@pytest.mark.parametrize("case", CONFIGS)
def test_tensors_from_the_numbers_are_those_of_transformers(case, tmp_path):
    module = build(*CONFIGS[case], "meta")
    config = ConfigNumbers(raw=module.config.to_diff_dict(), path=tmp_path)
    architecture = ARCHITECTURES[type(module).__name__]
    skipped = tuple(f"{each}_proj.bias" for each in WITHOUT_BIAS_IN_VLLM.get(case, ""))
    stored = stored_shapes(module)
    shapes = {name: shape for name, shape in stored.items() if not name.endswith(skipped)}
    assert (shapes != stored) == bool(skipped)
    parameters = list(architecture.parameters(config, shapes))
    assert {one.name: one.shape for one in parameters} == shapes
    linears = {n for n, part in module.named_modules() if isinstance(part, torch.nn.Linear)}
    is_gate = ("gate", "lm_head", "shared_expert_gate")
    expected = {f"{n}.weight" for n in linears if "visual" not in n and not n.endswith(is_gate)}
    found = {one.name for one in parameters if one.is_linear and ".experts." not in one.name}
    gates = {f"{name}.mlp.gate.weight" for name in ("model.layers.1",) if case == "qwen3 moe"}
    assert found - {"lm_head.weight"} == expected | gates


def test_head_dim_of_qwen2_is_not_read(tmp_path):
    """vLLM divides the hidden size by the number of heads."""
    config = ConfigNumbers(raw={**SIZES, "head_dim": 32}, path=tmp_path)
    shapes = {p.name: p.shape for p in ARCHITECTURES["Qwen2ForCausalLM"].parameters(config, ())}
    assert shapes["model.layers.0.self_attn.q_proj.weight"] == (64, 64)


def test_every_architecture_is_compared():
    built = {type(build(*case, "meta")).__name__ for case in CONFIGS.values()}
    assert built == set(ARCHITECTURES)


def export_text(case, folder):
    """Export a model of text in FP8 with ModelOpt."""
    import modelopt.torch.quantization as mtq
    from modelopt.torch.export import export_hf_checkpoint

    module = build(*CONFIGS[case], "cpu")
    module.config.architectures = [type(module).__name__]
    mtq.quantize(module, mtq.FP8_DEFAULT_CFG, lambda m: m(input_ids=torch.arange(128)[None]))
    with torch.no_grad():
        export_hf_checkpoint(module, export_dir=folder)
    for name in COMPANIONS:
        shutil.copyfile(f"{REGISTRY['tiny-qwen3-vl'].location}/{name}", folder / name)
    return EditedExport(folder, folder)


@pytest.mark.parametrize("case", ["llama", "qwen2", "qwen2 moe", "gemma 3"])
def test_export_of_a_model_of_text_breaks_no_rule(tmp_path, case):
    export_text(case, tmp_path)
    assert violations_of(tmp_path) == set()


def test_experts_of_a_layer_are_declared_and_excluded_together(tmp_path):
    export = export_text("qwen3 moe", tmp_path)
    assert violations_of(tmp_path) == set()
    experts = "model.layers.1.mlp.experts"
    stored = {n for n in export.tensors if n.startswith(experts) and n.endswith(".weight")}
    assert len(stored) == 12
    export.exclude(f"{experts}.3.down_proj")
    assert violations_of(export.save()) == {("exclusion", name) for name in stored}
    export.include(f"{experts}.3.down_proj")
    for pattern, excluded in (("experts*", stored), ("exp*", ())):  # split at the final star
        export.exclude(f"model.layers.*.mlp.{pattern}")
        assert violations_of(export.save()) == {("exclusion", name) for name in excluded}
        export.include(f"model.layers.*.mlp.{pattern}")
    gate = next(each for each in export.declared["ignore"] if "layers.1.mlp.gate" in each)
    export.include(gate)
    assert violations_of(export.save()) == {("exclusion", "model.layers.1.mlp.gate.weight_scale")}
    export.exclude(gate)
    for name in stored:
        export.put(f"{name}_scale", *[1.0] * export.tensors[name].shape[0])
        export.drop(name.replace("weight", "input_scale"))
    export.set_algorithm("FP8_PER_CHANNEL_PER_TOKEN")
    found = {p.text for _, p in problems(read_export(export.save())) if "expert" in p.tensor}
    assert found == {"is of an expert: vLLM has none in FP8_PER_CHANNEL_PER_TOKEN"}
