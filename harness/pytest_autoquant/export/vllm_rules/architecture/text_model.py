"""The tensors of a model of text, from the numbers of its config."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pytest_autoquant.export.vllm_rules.architecture.config_numbers import (
    MOST_REPEATED,
    ConfigNumbers,
)
from pytest_autoquant.export.vllm_rules.architecture.parameter import Parameter, linear, plain

#: True, False, or the key of the config that says so, false where the config lacks it.
Flag = bool | str

_LAYER_NORMS = ("input_layernorm", "post_attention_layernorm")
_MLP_NORMS = ("pre_feedforward_layernorm", "post_feedforward_layernorm")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextModel:
    """What tells one decoder of the Llama kind from another.

    Source: the ``__init__`` of each model's attention, MLP and decoder layer in vLLM 0.32.0,
    compared with transformers 5.14. Where they differ, this is what vLLM has: no bias in Gemma 1
    and in Qwen3's output projection, whatever the config says, and a ``head_dim`` that Qwen2 does
    not read.

    Attributes:
        head_dim: where the config names none; None for the hidden size over the number of heads.
        reads_head_dim: whether the config's ``head_dim`` counts.
        is_tied: whether the output layer is the embedding, where the config does not say.
        has_head_norms: a norm over each head's queries and one over its keys.
        has_mlp_norms: a norm before and one after the MLP, besides those of the attention.
        has_linear_gate: whether vLLM quantizes the gate of experts unless the config excludes it.
    """

    qkv_bias: Flag = False
    o_bias: Flag = False
    mlp_bias: Flag = False
    head_dim: int | None = None
    reads_head_dim: bool = True
    is_tied: bool = False
    has_head_norms: bool = False
    has_mlp_norms: bool = False
    has_experts: bool = False
    has_shared_expert: bool = False
    has_linear_gate: bool = False

    def parameters(
        self, config: ConfigNumbers, prefix: str, *, is_tied: bool
    ) -> Iterator[Parameter]:
        """Yield every tensor of the decoder, under ``prefix``, and of an output layer of its own.

        Raises:
            ExportError: a number is missing or malformed.
        """
        hidden, vocabulary = config.number("hidden_size"), config.number("vocab_size")
        yield plain(f"{prefix}embed_tokens.weight", vocabulary, hidden)
        yield plain(f"{prefix}norm.weight", hidden)
        if not is_tied:
            yield from linear("lm_head", vocabulary, hidden)
        for index in range(config.number("num_hidden_layers", most=MOST_REPEATED)):
            layer = f"{prefix}layers.{index}"
            yield from self._norms(layer, hidden)
            yield from self._attention(config, f"{layer}.self_attn", hidden)
            if self.has_experts and _is_sparse(config, index):
                yield from self._experts(config, f"{layer}.mlp", hidden)
            else:
                yield from self._mlp(config, f"{layer}.mlp", config.number("intermediate_size"))

    def _norms(self, layer: str, hidden: int) -> Iterator[Parameter]:
        for name in _LAYER_NORMS + (_MLP_NORMS if self.has_mlp_norms else ()):
            yield plain(f"{layer}.{name}.weight", hidden)

    def _attention(self, config: ConfigNumbers, name: str, hidden: int) -> Iterator[Parameter]:
        heads = config.number("num_attention_heads")
        pairs = config.number("num_key_value_heads", default=heads)
        width = self.head_dim or hidden // max(heads, 1)
        if self.reads_head_dim:
            width = config.number("head_dim", default=width)
        has_bias = _says(config, self.qkv_bias)
        yield from linear(f"{name}.q_proj", heads * width, hidden, has_bias=has_bias)
        yield from linear(f"{name}.k_proj", pairs * width, hidden, has_bias=has_bias)
        yield from linear(f"{name}.v_proj", pairs * width, hidden, has_bias=has_bias)
        yield from linear(
            f"{name}.o_proj", hidden, heads * width, has_bias=_says(config, self.o_bias)
        )
        if self.has_head_norms:
            yield plain(f"{name}.q_norm.weight", width)
            yield plain(f"{name}.k_norm.weight", width)

    def _mlp(self, config: ConfigNumbers, name: str, width: int) -> Iterator[Parameter]:
        hidden, has_bias = config.number("hidden_size"), _says(config, self.mlp_bias)
        yield from linear(f"{name}.gate_proj", width, hidden, has_bias=has_bias)
        yield from linear(f"{name}.up_proj", width, hidden, has_bias=has_bias)
        yield from linear(f"{name}.down_proj", hidden, width, has_bias=has_bias)

    def _experts(self, config: ConfigNumbers, name: str, hidden: int) -> Iterator[Parameter]:
        """Yield a mixture of experts; the gate of a shared expert is never quantized."""
        experts, width = _num_experts(config), config.number("moe_intermediate_size")
        if self.has_linear_gate:
            yield from linear(f"{name}.gate", experts, hidden)
        else:
            yield plain(f"{name}.gate.weight", experts, hidden)
        for expert in range(experts):
            yield from self._mlp(config, f"{name}.experts.{expert}", width)
        if self.has_shared_expert:
            yield plain(f"{name}.shared_expert_gate.weight", 1, hidden)
            shared = config.number("shared_expert_intermediate_size")
            yield from self._mlp(config, f"{name}.shared_expert", shared)


def _says(config: ConfigNumbers, flag: Flag) -> bool:
    return config.flag(flag, default=False) if isinstance(flag, str) else flag


def _num_experts(config: ConfigNumbers) -> int:
    return config.number("num_experts", "num_local_experts", most=MOST_REPEATED)


def _is_sparse(config: ConfigNumbers, layer: int) -> bool:
    """Source: ``Qwen2MoeDecoderLayer`` and ``Qwen3MoeDecoderLayer`` of vLLM 0.32.0."""
    step = max(config.number("decoder_sparse_step", default=1), 1)
    is_dense = layer in config.numbers("mlp_only_layers")
    return not is_dense and _num_experts(config) > 0 and (layer + 1) % step == 0
