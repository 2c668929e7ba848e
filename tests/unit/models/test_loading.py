"""Loading a checkpoint or random weights, and what is refused."""

from dataclasses import replace

import pytest
import torch
from builders import change_weights, linear, load_tiny
from pytest_autoquant.errors import ModelError
from pytest_autoquant.models.loading import load_model
from pytest_autoquant.models.registry import ModelSource, find_model
from pytest_autoquant.models.weight_values import dead_linears

CPU = torch.device("cpu")
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


def load(folder, **options):
    source = find_model(str(folder), random_weights=False)
    return load_model(source, device=CPU, dtype=torch.float32, **options)


def test_embedded_model_is_loaded_with_record_and_tokenizer(tiny):
    record = tiny.record
    assert (record.id, record.name) == ("tiny-qwen3-vl", "tiny-qwen3-vl")
    assert record.architecture == "Qwen3VLForConditionalGeneration"
    assert (record.weights, record.dtype) == ("checkpoint", "float32")
    assert record.num_parameters == sum(p.numel() for p in tiny.module.parameters())
    assert record.num_language_model_linears == len(tiny.linears) == 6 * 7
    assert not tiny.module.training
    (row,) = tiny.tokenize(("A dog sleeps.",))
    assert tiny.tokenizer.decode(row) == "A dog sleeps."


def test_random_weights_depend_on_the_seed_only():
    one, same, other = (load_tiny(random_seed=seed) for seed in (1, 1, 2))
    weights = [m.module.get_parameter("lm_head.weight") for m in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert one.record.digest == same.record.digest != other.record.digest
    assert {m.record.weights for m in (one, same, other)} == {"random"}


def test_random_weights_away_from_the_hub_use_the_embedded_tokenizer(tiny, checkpoint):
    source = ModelSource(name="away", location="org/away", architecture=checkpoint / "config.json")
    loaded = load_model(source, device=CPU, dtype=torch.float32, random_seed=0)
    assert loaded.record.architecture == "Qwen3ForCausalLM"
    assert loaded.tokenize(("A dog.",)) == tiny.tokenize(("A dog.",))


def test_digest_of_a_causal_language_model_changes_with_a_weight(checkpoint):
    loaded = load(checkpoint)
    assert loaded.linears[0].name == "model.layers.0.self_attn.q_proj"
    assert loaded.others == ("lm_head",)
    assert load(checkpoint).record.digest == loaded.record.digest
    change_weights(checkpoint, lambda weights: weights[Q_PROJ][0].add_(1))
    assert load(checkpoint).record.digest != loaded.record.digest


@pytest.mark.parametrize(
    ("value", "dtype", "named"),
    [
        (float("nan"), torch.float32, "float32"),
        (float("-inf"), torch.bfloat16, "bfloat16"),
        (1e5, torch.float16, "float16"),
    ],
)
def test_weights_that_are_not_finite_are_named_and_counted(checkpoint, value, dtype, named):
    def spoil(weights):
        weights[Q_PROJ][0, :3] = value
        weights["model.norm.weight"][5] = value

    change_weights(checkpoint, spoil)
    with pytest.raises(ModelError) as caught:
        load_tiny(str(checkpoint), dtype=dtype)
    assert str(caught.value) == (
        f"model mine: NaN or infinity in 2 weight tensors as {named}: {Q_PROJ} (3 values), "
        "model.norm.weight (1 value); repair the checkpoint, or give another --aq-dtype if only "
        "this one cannot hold its values"
    )


def test_linears_without_a_weight_other_than_zero_are_dead(checkpoint):
    def spoil(weights):
        weights[Q_PROJ].zero_()
        weights["model.layers.0.self_attn.k_proj.weight"][1:].zero_()  # a row is left

    change_weights(checkpoint, spoil)
    assert load(checkpoint).dead == (Q_PROJ.removesuffix(".weight"),)


def test_fused_experts_are_dead_with_one_matrix_of_zeros():
    experts = torch.nn.Module()
    experts.gate_up_proj = torch.nn.Parameter(torch.ones(3, 4, 2))
    experts.down_proj = torch.nn.Parameter(torch.ones(3, 2, 2))
    module = torch.nn.ModuleDict({"experts": experts})
    linears = (replace(linear("experts", 4, 2), input_widths=(2, 2)),)
    assert dead_linears(module, linears) == ()
    experts.down_proj.data[1] = 0
    assert dead_linears(module, linears) == ("experts",)


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.embeddings.position_ids"]
)
def test_buffers_that_models_compute_are_no_unexpected_weights(checkpoint, name):
    change_weights(checkpoint, lambda weights: weights.update({name: torch.ones(8)}))
    assert len(load(checkpoint).linears) == 7


def write_bert(folder):
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 8, "intermediate_size": 8, "vocab_size": 8}
    BertModel(BertConfig(num_hidden_layers=1, num_attention_heads=1, **sizes)).save_pretrained(
        folder
    )


def write_gpt2(folder):
    """A decoder whose weight matrices are transformers' ``Conv1D``, not linears."""
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=1, n_layer=1, vocab_size=2048)).save_pretrained(
        folder
    )


def truncate_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def remove_tokenizer(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: (folder / "config.json").write_text("{"),
            "its config cannot be loaded from mine: OSError: ",
        ),
        (write_bert, "architecture BertModel is neither an image-text nor a causal language model"),
        (write_gpt2, "its language model has no nn.Linear to measure"),
        (truncate_weights, "its weights cannot be loaded from mine: SafetensorError: "),
        (
            lambda folder: change_weights(folder, lambda weights: weights.pop(Q_PROJ)),
            f"the checkpoint lacks 1 weights of Qwen3ForCausalLM, such as {Q_PROJ}; they would be",
        ),
        (
            lambda folder: change_weights(
                folder, lambda w: w.update({Q_PROJ: w[Q_PROJ][1:].clone()})
            ),
            f"1 weights differ in shape from the config, such as {Q_PROJ}",
        ),
        (
            lambda folder: change_weights(
                folder, lambda w: w.update({f"extra.{i}": torch.ones(1) for i in range(4)})
            ),
            "the checkpoint has 4 weights that Qwen3ForCausalLM does not have: extra.0, extra.1, "
            "extra.2 and 1 more; they would be left out: use a checkpoint of this architecture",
        ),
        (remove_tokenizer, "mine has no tokenizer; save one in the folder of the weights"),
    ],
    ids=[
        "config",
        "bert",
        "no linears",
        "truncated",
        "missing",
        "shape",
        "unexpected",
        "tokenizer",
    ],
)
def test_damaged_checkpoint_is_refused(checkpoint, damage, message):
    damage(checkpoint)
    with pytest.raises(ModelError) as caught:
        load(checkpoint)
    assert str(caught.value).startswith(f"model mine: {message}")
    assert "\n" not in str(caught.value)
