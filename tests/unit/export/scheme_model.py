"""Formats for layer groups of the embedded model, and what must not change about a model."""

from dataclasses import replace

import torch
from builders import settings_of
from pytest_autoquant.allocation.scheme import Scheme
from pytest_autoquant.calibration.batches import calibration_data
from pytest_autoquant.calibration.captions import CaptionSet
from pytest_autoquant.export.apply_scheme import GroupFormat, applied
from pytest_autoquant.export.checkpoint.source_files import source_folder
from pytest_autoquant.export.checkpoint.verify import calibrated_input_scales, verify_checkpoint
from pytest_autoquant.export.checkpoint.write import write_checkpoint
from pytest_autoquant.export.scheme_groups import choose
from pytest_autoquant.formats.effective_config import resolve
from pytest_autoquant.formats.granularity import DEFAULT
from pytest_autoquant.formats.quant_pair import QuantPair
from pytest_autoquant.grid.case import Combination, SchemeCase
from pytest_autoquant.grid.vocabulary import load_vocabulary
from pytest_autoquant.modelopt_support.presets import load_preset
from pytest_autoquant.models.registry import find_model
from pytest_autoquant.scoring.runner import MeasurementRunner

VOCABULARY = load_vocabulary()
LAYERS = "model.language_model.layers"
QKV = tuple(f"{LAYERS}.0.self_attn.{each}_proj" for each in "qkv")
OUT = (f"{LAYERS}.0.self_attn.o_proj",)
GATE_UP = (f"{LAYERS}.1.mlp.gate_proj", f"{LAYERS}.1.mlp.up_proj")
DOWN = (f"{LAYERS}.1.mlp.down_proj",)


def batches_of(model, captions, count, batch_size=8):
    first = replace(captions, requested=count)
    return calibration_data(first, model.tokenize, batch_size=batch_size, score_size=count).batches


#: Weights, activations and ModelOpt preset of pairs that a user could add.
PAIRS_OF_ONES_OWN = {
    "mxfp8": ("fp8", "fp8", "MXFP8_DEFAULT_CFG"),
    "fp8_blocks": ("fp8", "fp16", "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG"),
}


def config_of(candidate):
    """Return the effective config of ``pair`` or ``pair-granularity``."""
    pair, _, granularity = candidate.partition("-")
    if pair in PAIRS_OF_ONES_OWN:
        weight, activation, preset = PAIRS_OF_ONES_OWN[pair]
        own = QuantPair(
            name=pair,
            weight=weight,
            activation=activation,
            format_name=preset,
            experimental=False,
            from_preset=True,
        )
        return resolve(own, DEFAULT, load_preset(own))
    return resolve(VOCABULARY.pairs[pair], VOCABULARY.granularities[granularity or "default"])


def open_bench(model="tiny-qwen3-vl"):
    settings = settings_of(device="cpu", model=model)
    source = find_model(model, random_weights=False)
    return MeasurementRunner(settings, source, lambda *_: None, print)


def held_out_of(*lines):
    return CaptionSet(name="mine.txt", size="held-out", requested=len(lines), lines=lines)


def case_of(scheme, model="tiny-qwen3-vl"):
    configs = [config_of(name) for name in scheme.candidates]
    candidates = tuple(Combination(pair=c.pair, granularity=c.granularity) for c in configs)
    return SchemeCase(model=model, scheme=scheme, candidates=candidates, size="small")


def mine(*candidates, measure="effective_bits", amount=10.0):
    return case_of(Scheme(name="mine", candidates=candidates, measure=measure, amount=amount))


def choice_of(bench, case):
    """Return what a case chooses where every group can take every candidate."""
    return choose(
        case,
        {},
        [bench.config(each) for each in case.candidates],
        [{} for _ in case.candidates],
        bench.scores(case.size, case.candidates),
        bench.data(case.size),
        {linear.name: linear for linear in bench.model.linears},
    )


def formats_of(*chosen):
    """Return group formats from (candidate, group, group, ...)."""
    return tuple(
        GroupFormat(modules=modules, config=config_of(candidate))
        for candidate, *groups in chosen
        for modules in groups
    )


MIXTURE = formats_of(("wfp8_afp8", QKV), ("wint4_afp16", GATE_UP))


def quantizers(module):
    """Return ModelOpt's quantizers by name."""
    from modelopt.torch.quantization.nn import TensorQuantizer

    return {n: part for n, part in module.named_modules() if isinstance(part, TensorQuantizer)}


def logits_of(model, batches):
    """Return the logits that predict a token, of each batch."""
    with torch.no_grad():
        return [
            model.module(input_ids=model.tensor(batch), use_cache=False).logits[:, :-1].numpy()
            for batch in batches
        ]


def export_scheme(model, source, formats, batches, folder):
    """Write and verify a checkpoint as the pipeline does."""
    original = source_folder(model, source)
    with applied(model, formats, batches):
        scales = calibrated_input_scales(model, formats)
        write_checkpoint(model, original, folder)
    return verify_checkpoint(model, formats, scales, folder, original)


def snapshot(module):
    """Return everything that makes a model what it is: by identity, and values bit for bit."""
    parts = {
        name: (type(part), {key: id(value) for key, value in vars(part).items()})
        for name, part in module.named_modules()
    }
    containers = {
        name: [sorted(map(str, value)) for value in vars(part).values() if isinstance(value, dict)]
        for name, part in module.named_modules()
    }
    weights = {
        name: (id(p), p.requires_grad, p.grad is None, p.dtype, p.detach().numpy().tobytes())
        for name, p in module.named_parameters(remove_duplicate=False)
    }
    buffers = {name: b.numpy().tobytes() for name, b in module.named_buffers()}
    configs = dict(vars(module.config)), dict(vars(module.generation_config))
    return parts, containers, weights, buffers, configs
