"""The recorded config, fed back to ModelOpt, quantizes exactly the modules that were measured."""

import json
from dataclasses import replace

import modelopt.torch.quantization as mtq
import pytest
import torch
from pytest_autoquant.formats.granularity import DEFAULT, builtin_granularities
from pytest_autoquant.formats.quant_cfg import recorded_entries
from pytest_autoquant.formats.quant_pair import builtin_pairs
from pytest_autoquant.manifests.records.sensitivity_manifest import dump_manifest
from pytest_autoquant.modelopt_support.private_api import named_quantizers
from pytest_autoquant.modelopt_support.probe import Prober
from pytest_autoquant.modelopt_support.quiet import quiet
from pytest_autoquant.models.layers import language_model_linears, other_weighted_modules
from pytest_autoquant.scoring.engine import GroupScore
from pytest_autoquant.scoring.manifest.build_manifest import build_manifest
from torch import nn

SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}


def llama(**values):
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**SHAPE, **values))


def mixture():
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    return Qwen2MoeForCausalLM(
        Qwen2MoeConfig(
            **SHAPE,
            moe_intermediate_size=128,
            num_experts=4,
            shared_expert_intermediate_size=128,
            num_experts_per_tok=2,
        )
    )


def with_connector():
    """A model with a linear outside the decoder that the presets do not know."""
    model = llama()
    model.connector = nn.Linear(8, 8)
    return model


MODELS = {
    "dense": llama,
    "tied": lambda: llama(tie_word_embeddings=True),
    "mixture": mixture,
    "connector": with_connector,
}


def record_of(findings, model, pair, granularity):
    """The quantization that a manifest of this model has, read from its JSON."""
    linears = language_model_linears(model)
    groups = [GroupScore(modules=(each.name,), score=1.0, quantized=True) for each in linears]
    config = Prober(torch.device("cpu"), torch.float32).resolve(
        builtin_pairs()[pair], builtin_granularities()[granularity]
    )
    manifest = build_manifest(
        replace(
            findings,
            config=config,
            measurement=replace(findings.measurement, groups=tuple(groups)),
            linears={each.name: each for each in linears},
            others=other_weighted_modules(model, linears),
        )
    )
    return json.loads(dump_manifest(manifest))["quantization"]


def quantized_by(model, config, names):
    """Each module with enabled quantizers, with ModelOpt's description of its weight quantizer."""
    with quiet():
        mtq.quantize(model, config, lambda module: module(input_ids=torch.arange(24).view(2, 12)))
    found = {}
    for name, quantizer in named_quantizers(model):
        if quantizer.is_enabled:
            owner = next((each for each in names if name.startswith(f"{each}.")), name)
            found.setdefault(owner, set()).add(quantizer.extra_repr().partition(" amax")[0])
    return found


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    ("pair", "granularity"),
    [
        ("wfp8_afp8", "recipe_match_channel_token"),
        ("wint4_afp16", "w_group64"),
        ("wint4_aint8", "default"),
    ],
)
def test_recorded_config_quantizes_what_was_measured(findings, kind, pair, granularity):
    names = [each.name for each in language_model_linears(MODELS[kind]())]
    assert not any("shared_expert_gate" in name or "connector" in name for name in names)
    record = record_of(findings, MODELS[kind](), pair, granularity)
    entries = recorded_entries(record["effective_quant_cfg"])
    config = {"quant_cfg": entries, "algorithm": record["algorithm"]}
    actual = quantized_by(MODELS[kind](), config, names)
    assert sorted(actual) == sorted(names)
    dtype = "(4, 3) bit" if pair.startswith("wfp8") else "4 bit"
    assert all(any(text.startswith(dtype) for text in texts) for texts in actual.values())
    assert len(entries) == (28 if kind == "connector" else 27)


@pytest.mark.parametrize("kind", ["dense", "mixture"])
def test_recorded_default_equals_its_preset(findings, kind):
    names = [each.name for each in language_model_linears(MODELS[kind]())]
    record = record_of(findings, MODELS[kind](), "wint8_aint8", DEFAULT.name)
    assert record["base_is_modelopt_preset"] is True
    ours = {"quant_cfg": recorded_entries(record["effective_quant_cfg"]), "algorithm": "max"}
    preset = getattr(mtq, record["base_format_name"])
    assert quantized_by(MODELS[kind](), ours, names) == quantized_by(MODELS[kind](), preset, names)
