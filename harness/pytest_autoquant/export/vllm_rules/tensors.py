"""Rules of single tensors: the set that the architecture has, their shapes, dtypes and values."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby

from pytest_autoquant.export.checkpoint.files import PLAIN_DTYPES, Tensor
from pytest_autoquant.export.vllm_rules.architecture.parameter import Parameter
from pytest_autoquant.export.vllm_rules.exported_model import LINEAR_SCALES, ExportedModel
from pytest_autoquant.export.vllm_rules.problem import Problem
from pytest_autoquant.export.vllm_rules.scales import shape_text
from pytest_autoquant.text import counted

#: A part of a model that is missing or unknown as a whole is one problem: a vision tower, a layer.
_UNITS = (
    re.compile(r"(?:model\.)?visual\."),
    re.compile(r".*?\.(?:layers|blocks)\.\d+\."),
)

#: Tensors that vLLM skips. Source: ``AutoWeightsLoader`` in vLLM 0.32.0's
#: ``vllm/model_executor/models/utils.py``.
_SKIPPED = (
    "rotary_pos_emb.inv_freq",
    "rotary_emb.inv_freq",
    "rotary_emb.cos_cached",
    "rotary_emb.sin_cached",
)

#: Other tensors of a linear that rules of their own look at.
_OTHER_KINDS = (*LINEAR_SCALES, "k_scale", "v_scale", "pre_quant_scale")

_UNSET = "vLLM loads the checkpoint and computes with memory that is not set"
_MAYBE_UNSET = "vLLM refuses the checkpoint or computes with memory that is not set"

#: safetensors' names of the dtypes that a config names.
_CONFIG_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


def tensor_set(export: ExportedModel) -> Iterator[Problem]:
    """The tensors are those that the architecture and the config say.

    Source: vLLM raises for a tensor without a parameter, biases aside (``AutoWeightsLoader`` in
    ``vllm/model_executor/models/utils.py`` of vLLM 0.32.0), and leaves a parameter without a tensor
    as ``torch.empty`` made it. Only of an unquantized checkpoint does it refuse some of those
    (``load_weights`` in ``vllm/model_executor/model_loader/default_loader.py``).
    """
    present = {export.vllm_name(name) for name in export.tensors}
    expected = {parameter.name: name for name, parameter in export.expected.items()}
    missing = [name for name, renamed in expected.items() if renamed not in present]
    yield from _missing(missing, expected, _UNSET if export.quantizations else _MAYBE_UNSET)
    unknown = (name for name in export.tensors if export.vllm_name(name) not in export.expected)
    yield from _unknown(export, sorted(unknown))


def _missing(names: Iterable[str], expected: Iterable[str], effect: str) -> Iterator[Problem]:
    sizes = Counter(unit for name in expected for unit in _units(name))
    missing = Counter(unit for name in names for unit in _units(name))
    whole = {unit for unit, count in missing.items() if count == sizes[unit]}
    for unit, group in groupby(names, lambda name: _first_in(whole, name)):
        count = f" ({counted(len(list(group)), 'tensor')})" if unit.endswith("*") else ""
        yield Problem(tensor=unit, text=f"is missing{count}: {effect}")


def _unknown(export: ExportedModel, names: Iterable[str]) -> Iterator[Problem]:
    known = {unit for parameter in export.expected.values() for unit in _units(parameter.name)}
    read = set(_read_by_other_rules(export))
    unread = [name for name in names if name not in read]
    units = {unit for name in unread for unit in _units(name)} - known
    for unit, group in groupby(unread, lambda name: _first_in(units, name)):
        yield _unknown_problem(export, unit, len(list(group)))


def _read_by_other_rules(export: ExportedModel) -> Iterator[str]:
    """Yield the scales of linears, and of the vision tower, which has none."""
    linears = (one.name for one in export.expected.values() if one.is_linear)
    for module in (name.removesuffix(".weight") for name in linears):
        yield from (f"{module}.{kind}" for kind in _OTHER_KINDS)
    yield from (one.name for one in export.vision_tensors() if one.kind in _OTHER_KINDS)


def _unknown_problem(export: ExportedModel, name: str, count: int) -> Problem:
    if name.endswith(_SKIPPED) or _is_tied_output(export, name):
        return Problem(tensor=name, text="is skipped by vLLM", is_tolerated=True)
    if name.endswith(".bias"):
        text = f"is skipped by vLLM: the {export.class_name} of this config has no such bias"
        return Problem(tensor=name, text=text)
    what = f"({counted(count, 'tensor')}) are" if name.endswith("*") else "is"
    return Problem(
        tensor=name,
        text=f"{what} in no module of the {export.class_name} of this config: vLLM refuses the "
        "checkpoint",
    )


def _is_tied_output(export: ExportedModel, name: str) -> bool:
    """Whether it is an output layer that the config declares to be the embedding.

    Source: ``_get_tied_embedding_params`` in vLLM 0.32.0's ``vllm/model_executor/models/utils.py``.
    vLLM 0.24.0 skipped the scales of such a layer too.
    """
    return name == "lm_head.weight" and export.vllm_name(name) not in export.expected


def _units(name: str) -> Iterator[str]:
    for unit in _UNITS:
        match = unit.match(name)
        if match is not None:
            yield f"{match[0]}*"


def _first_in(units: Iterable[str], name: str) -> str:
    """Return the largest of ``units`` that a tensor is in, else its name."""
    return next((unit for unit in _units(name) if unit in units), name)


def unquantized(export: ExportedModel) -> Iterator[Problem]:
    """Tensors that are not quantized have the architecture's shapes and a floating dtype.

    Source: the weight loaders assert equal shapes and convert dtypes: ``default_weight_loader`` in
    ``vllm/model_executor/model_loader/weight_utils.py`` of vLLM 0.32.0.
    """
    quantized = {linear.weight.name for linear in export.linears if linear.is_quantized}
    quantized |= {one.name for one in export.vision_tensors() if one.is_quantized_weight}
    for name in sorted(export.tensors):
        parameter = export.expected.get(export.vllm_name(name))
        if parameter is not None and name not in quantized:
            yield from _plain_problems(export.tensors[name], parameter, export.dtype)


def _plain_problems(tensor: Tensor, parameter: Parameter, dtype: str | None) -> Iterator[Problem]:
    if tensor.shape != parameter.shape:
        yield Problem(tensor=tensor.name, text=shape_text(tensor.shape, parameter.shape))
    elif tensor.dtype not in PLAIN_DTYPES:
        text = f"is {tensor.dtype}; vLLM never quantizes it and needs a floating dtype"
        yield Problem(tensor=tensor.name, text=text)
    elif tensor.dtype != _CONFIG_DTYPES.get(dtype or "", tensor.dtype):
        text = f"is {tensor.dtype}: vLLM converts it to {dtype}, which the config declares"
        yield Problem(tensor=tensor.name, text=text, is_tolerated=True)


def values(export: ExportedModel) -> Iterator[Problem]:
    """No tensor holds NaN or infinity.

    Source: of all values vLLM 0.32.0 looks at one kind only: it refuses a linear with NaN in the
    block scales of NVFP4 (``KNvfp4Static.process``). That it loads NaN in an FP8 weight was seen by
    loading tampered checkpoints in vLLM 0.32 on a CPU.
    """
    for name in sorted(export.tensors):
        count = export.tensors[name].values.num_non_finite
        if count:
            text = (
                f"holds {counted(count, 'value')} that {'is' if count == 1 else 'are'} not finite"
            )
            yield Problem(tensor=name, text=text)
