"""Loading a checkpoint or random weights, and what is refused."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from builders import change_weights, linear, load_tiny, put_on_hub, use_hub
from pytest_autoquant.errors import ModelError
from pytest_autoquant.models.layers import load_architecture
from pytest_autoquant.models.loading import load_model
from pytest_autoquant.models.registry import REGISTRY, ModelSource, find_model
from pytest_autoquant.models.weight_values import dead_linears

CPU = torch.device("cpu")
FIRST, SECOND = "1" * 40, "2" * 40
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


def load_from_hub(hub_id, *, revision=None, **options):
    random = options.get("random_seed") is not None
    source = find_model(hub_id, random_weights=random, revision=revision)
    return load_model(source, device=CPU, dtype=torch.float32, **options)


def test_hub_checkpoint_is_read_at_one_commit(tiny, tmp_path, monkeypatch):
    """Later commits spoil config, weights and tokenizer."""
    hub, folder = tmp_path / "hub", tmp_path / "tiny"
    use_hub(monkeypatch, hub)
    shutil.copytree(REGISTRY["tiny-qwen3-vl"].location, folder)
    for branch in ("main", "v1"):
        put_on_hub(hub, "org/it", folder, FIRST, branch)
    loaded = load_from_hub("org/it")
    digest = loaded.record.digest
    change_weights(folder, lambda w: w["model.language_model.norm.weight"].mul_(2))
    put_on_hub(hub, "org/it", folder, SECOND)
    second = load_from_hub("org/it").record
    assert (second.commit, second.digest == digest) == (SECOND, False)
    truncate_weights(folder)
    remove_tokenizer(folder)
    (folder / "config.json").write_text("{")
    put_on_hub(hub, "org/it", folder, "3" * 40)
    for revision in ("v1", FIRST):
        loaded = load_from_hub("org/it", revision=revision)
        changes = {"id": "org/it", "name": "org--it", "digest": digest, "commit": FIRST}
        assert loaded.record == replace(tiny.record, **changes)
        assert loaded.tokenize(("A dog.",)) == tiny.tokenize(("A dog.",))
    random = load_from_hub("org/it", revision=FIRST, random_seed=0).record
    assert (random.commit, random.num_parameters) == (FIRST, tiny.record.num_parameters)
    with pytest.raises(ModelError, match=r"its config cannot be loaded from org/it: "):
        load_from_hub("org/it")
    with pytest.raises(ModelError, match=r"cannot be loaded from org/it at revision v2: "):
        load_from_hub("org/it", revision="v2")
    assert tiny.record.commit is None


def test_own_code_of_a_hub_checkpoint_is_that_of_the_revision(checkpoint, tmp_path, monkeypatch):
    hub = tmp_path / "hub"
    use_hub(monkeypatch, hub)
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "code")
    )
    write_own_code(checkpoint)
    put_on_hub(hub, "org/own", checkpoint, FIRST)
    (checkpoint / "own.py").write_text("raise RuntimeError('code of a later commit')\n")
    put_on_hub(hub, "org/own", checkpoint, SECOND)
    source = find_model("org/own", random_weights=False, revision=FIRST)
    for _ in range(2):  # the second time, the class is known
        module = load_architecture(source, trust_remote_code=True).module
        assert (type(module).__name__, type(module).marker) == ("Own", "first")
    for seed in (0, None):
        record = load_from_hub(
            "org/own", revision=FIRST, random_seed=seed, trust_remote_code=True
        ).record
        assert (record.architecture, record.commit) == ("Own", FIRST)


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


def write_own_code(folder):
    """Let the checkpoint bring its classes."""
    (folder / "own.py").write_text(
        "from transformers import Qwen3Config, Qwen3ForCausalLM\n\n\n"
        "class OwnConfig(Qwen3Config):\n    model_type = 'own'\n\n\n"
        "class Own(Qwen3ForCausalLM):\n    config_class = OwnConfig\n    marker = 'first'\n"
    )
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}
    config |= {"model_type": "own", "architectures": ["Own"], "auto_map": classes}
    (folder / "config.json").write_text(json.dumps(config))


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
