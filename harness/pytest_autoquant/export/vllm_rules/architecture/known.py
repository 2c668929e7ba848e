"""The architectures whose tensors and names in vLLM are known, one entry each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from pytest_autoquant.export.vllm_rules.architecture.config_numbers import ConfigNumbers
from pytest_autoquant.export.vllm_rules.architecture.parameter import Parameter
from pytest_autoquant.export.vllm_rules.architecture.text_model import TextModel
from pytest_autoquant.export.vllm_rules.architecture.vision_towers import (
    qwen2_5_vl_vision,
    qwen3_vl_vision,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What a checkpoint of one class of transformers holds, and what vLLM calls it.

    Attributes:
        renamed: prefixes of tensors and what vLLM makes of them, applied in this order: the
            ``hf_to_vllm_mapper`` of vLLM's model.
        vision: tensors of the vision tower, from ``vision_config`` and their prefix; None for a
            model of text only.
    """

    text: TextModel
    renamed: tuple[tuple[str, str], ...] = ()
    vision: Callable[[ConfigNumbers, str], Iterator[Parameter]] | None = None

    def vllm_name(self, name: str) -> str:
        """Return what vLLM calls a module, tensor or pattern of a checkpoint."""
        for old, new in self.renamed:
            if name.startswith(old):
                name = new + name.removeprefix(old)
        return name

    def parameters(self, config: ConfigNumbers, names: Iterable[str]) -> Iterator[Parameter]:
        """Yield every tensor that an unquantized checkpoint holds, in no order.

        Args:
            names: tensors of the checkpoint, which show which of two names vLLM is given.

        Raises:
            ExportError: a number is missing or malformed.
        """
        text, is_nested = config.part("text_config"), self._is_nested(names)
        is_tied = config.flag("tie_word_embeddings", default=self.text.is_tied)
        yield from self.text.parameters(
            text,
            "model.language_model." if is_nested else "model.",
            is_tied=text.flag("tie_word_embeddings", default=is_tied),
        )
        if self.vision is not None:
            prefix = "model.visual." if is_nested else "visual."
            yield from self.vision(config.part("vision_config"), prefix)

    def _is_nested(self, names: Iterable[str]) -> bool:
        """Whether tensors are called ``model.language_model.*`` and ``model.visual.*``.

        transformers 4 called those of Qwen2.5-VL ``model.*`` and ``visual.*``.
        """
        if self.vision is None:
            return False
        has_older_names = any(old == "model." for old, _ in self.renamed)
        return not has_older_names or any(
            name.startswith(("model.language_model.", "model.visual.")) for name in names
        )


_QWEN3_VL = (
    ("model.visual.", "visual."),
    ("lm_head.", "language_model.lm_head."),
    ("model.language_model.", "language_model.model."),
)

_WITH_BIASES = TextModel(qkv_bias="attention_bias", o_bias="attention_bias")
_QWEN2 = TextModel(qkv_bias=True, reads_head_dim=False)
_QWEN3 = TextModel(qkv_bias="attention_bias", has_head_norms=True, head_dim=128)
_GEMMA = TextModel(head_dim=256, is_tied=True)
_GEMMA2 = replace(_WITH_BIASES, head_dim=256, is_tied=True, has_mlp_norms=True)

#: By the class that a config names. Source: vLLM 0.32.0, ``vllm/model_executor/models/``:
#: ``llama.py``, ``mistral.py``, ``qwen2.py``, ``qwen2_moe.py``, ``qwen3.py``, ``qwen3_moe.py``,
#: ``gemma.py``, ``gemma2.py``, ``gemma3.py``, ``qwen2_5_vl.py``, ``qwen3_vl.py``. The
#: ``hf_to_vllm_mapper`` of the models of text only fuses linears; it renames nothing. The width of
#: a head and whether the embedding is tied, where a config says neither, are those of transformers.
ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "LlamaForCausalLM": Architecture(text=replace(_WITH_BIASES, mlp_bias="mlp_bias")),
        "MistralForCausalLM": Architecture(text=TextModel()),
        "Qwen2ForCausalLM": Architecture(text=_QWEN2),
        "Qwen2MoeForCausalLM": Architecture(
            text=replace(_QWEN2, has_experts=True, has_shared_expert=True)
        ),
        "Qwen3ForCausalLM": Architecture(text=_QWEN3),
        "Qwen3MoeForCausalLM": Architecture(
            text=replace(_QWEN3, has_experts=True, has_linear_gate=True)
        ),
        "GemmaForCausalLM": Architecture(text=_GEMMA),
        "Gemma2ForCausalLM": Architecture(text=_GEMMA2),
        "Gemma3ForCausalLM": Architecture(text=replace(_GEMMA2, has_head_norms=True)),
        "Qwen2_5_VLForConditionalGeneration": Architecture(
            text=_QWEN2,
            renamed=(*_QWEN3_VL, ("model.", "language_model.model.")),
            vision=qwen2_5_vl_vision,
        ),
        "Qwen3VLForConditionalGeneration": Architecture(
            text=_QWEN3, renamed=_QWEN3_VL, vision=qwen3_vl_vision
        ),
    }
)
