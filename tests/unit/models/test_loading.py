"""Loading a model, and putting it back."""

import copy

import pytest
import torch
from pytest_autoquant.models.loading import (
    language_model_linears,
    load_model,
    preserved,
    resolve_device,
    resolve_dtype,
)
from pytest_autoquant.models.registry import REGISTRY, find_model
from torch import nn

CPU = torch.device("cpu")


def load(**options):
    return load_model(REGISTRY["tiny-qwen3-vl"], device=CPU, dtype=torch.float32, **options)


@pytest.fixture(scope="module")
def tiny():
    return load()


def test_the_embedded_model_is_a_real_qwen3_vl_with_its_vision_tower(tiny):
    assert tiny.record.architecture == "Qwen3VLForConditionalGeneration"
    assert tiny.record.weights == "checkpoint"
    assert any("visual" in name for name in tiny.others)
    assert "lm_head" in tiny.others


def test_every_measured_linear_is_the_language_models_and_a_multiple_of_128_wide(tiny):
    names = [linear.name for linear in tiny.linears]
    assert len(names) == 6 * 7
    assert all(name.startswith("model.language_model.layers.") for name in names)
    assert {linear.in_features % 128 for linear in tiny.linears} == {0}


def test_captions_become_ids_without_special_tokens(tiny):
    (row,) = tiny.tokenize(("A dog sleeps.",))
    assert tiny.tokenizer.decode(row) == "A dog sleeps."


def test_random_weights_are_the_same_for_a_seed_and_named_as_such():
    one, same, other = (load(random_seed=seed) for seed in (1, 1, 2))
    weight = "model.language_model.layers.0.mlp.up_proj.weight"
    first, second, third = (m.module.get_parameter(weight) for m in (one, same, other))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert one.record.digest == same.record.digest != other.record.digest


def test_a_changed_weight_changes_the_digest(tmp_path, tiny):
    tiny.module.save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    source = find_model(str(tmp_path), random_weights=False)
    before = load_model(source, device=CPU, dtype=torch.float32).record.digest
    changed = copy.deepcopy(tiny.module)
    with torch.no_grad():
        changed.get_parameter("model.language_model.norm.weight")[0] += 1
    changed.save_pretrained(tmp_path)
    assert load_model(source, device=CPU, dtype=torch.float32).record.digest != before


def test_a_causal_language_model_without_vision_can_be_measured(tmp_path):
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 2048}
    Qwen3ForCausalLM(Qwen3Config(**shape, **heads)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(REGISTRY["tiny-qwen3-vl"].location).save_pretrained(tmp_path)
    source = find_model(str(tmp_path), random_weights=False)
    loaded = load_model(source, device=CPU, dtype=torch.float32)
    assert loaded.linears[0].name == "model.layers.0.self_attn.q_proj"
    assert loaded.others == ("lm_head",)


def test_fused_experts_stand_as_one_linear_with_all_their_weights():
    from pytest_autoquant.models.loading import language_model_linears
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    shape = {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 96}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    size = {"num_hidden_layers": 1, "num_experts": 4, "vocab_size": 2048}
    module = Qwen3MoeForCausalLM(Qwen3MoeConfig(**shape, **heads, **size))
    *attention, experts = language_model_linears(module)
    assert [linear.name.rsplit(".", 1)[1][0] for linear in attention] == ["q", "k", "v", "o"]
    assert not any(linear.is_fused for linear in attention)
    assert experts.name == "model.layers.0.mlp.experts"
    assert experts.is_fused
    assert experts.input_widths == (64, 96)
    assert experts.out_features * experts.in_features == 4 * (2 * 96 * 64 + 64 * 96)


def test_the_full_architecture_of_qwen3_vl_4b_is_known_without_its_checkpoint():
    from pytest_autoquant.models.loading import architecture_linears

    linears = architecture_linears(REGISTRY["qwen3-vl-4b"], trust_remote_code=False)
    assert len(linears) == 36 * 7
    shapes = {
        linear.name.rsplit(".", 1)[1]: (linear.out_features, linear.in_features)
        for linear in linears
    }
    assert shapes["q_proj"] == (4096, 2560)
    assert shapes["k_proj"] == (1024, 2560)
    assert shapes["down_proj"] == (2560, 9728)


def test_auto_dtype_is_fp32_on_cpu_and_bf16_on_cuda():
    assert resolve_dtype("auto", CPU) is torch.float32
    assert resolve_dtype("auto", torch.device("cuda")) is torch.bfloat16
    assert resolve_device("cpu") == CPU


def vandalise(module):
    linear = module.get_submodule("model.language_model.layers.0.mlp.up_proj")
    linear.__class__ = type("Vandal", (nn.Linear,), {})
    linear.forward = lambda x: x
    linear.extra = torch.ones(1)
    linear.register_forward_hook(lambda *_: None)
    linear.register_buffer("amax", torch.ones(1))
    linear.weight.requires_grad_(False)
    linear.weight.grad = torch.ones_like(linear.weight)
    module.config.text_config.use_cache = False
    module.train()


def fingerprint(module):
    return {
        "classes": [type(child) for child in module.modules()],
        "attributes": [sorted(child.__dict__) for child in module.modules()],
        "hooks": [len(child._forward_hooks) for child in module.modules()],
        "buffers": [name for name, _ in module.named_buffers()],
        "grads": [(p.requires_grad, p.grad is None) for p in module.parameters()],
        "identity": [id(p) for p in module.parameters()],
        "config": module.config.to_json_string(),
        "training": module.training,
    }


def test_preserved_undoes_classes_attributes_hooks_buffers_gradients_and_config(tiny):
    before = fingerprint(tiny.module)

    def vandalise_and_fail():
        with preserved(tiny.module):
            vandalise(tiny.module)
            assert fingerprint(tiny.module) != before
            raise KeyError

    with pytest.raises(KeyError):
        vandalise_and_fail()
    assert fingerprint(tiny.module) == before


def test_preserved_copies_weights_back_only_when_asked():
    linear = nn.Linear(2, 2)
    start = linear.weight.detach().clone()
    with preserved(linear, weights=True), torch.no_grad():
        linear.weight.add_(1)
    assert torch.equal(linear.weight, start)
    with preserved(linear), torch.no_grad():
        linear.weight.add_(1)
    assert torch.equal(linear.weight, start + 1)


def test_linears_of_the_decoder_alone_carry_no_prefix():
    from transformers import Qwen3Config, Qwen3Model

    config = Qwen3Config(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=8,
    )
    names = [linear.name for linear in language_model_linears(Qwen3Model(config))]
    assert names[0] == "layers.0.self_attn.q_proj"
