"""Manifests as large as those of a real grid, made from a blessed one with seeded scores."""

import math
import random
from dataclasses import replace
from itertools import islice, product
from pathlib import Path

from pytest_autoquant.calibration.sizes import SIZES
from pytest_autoquant.grid.vocabulary import load_vocabulary
from pytest_autoquant.manifests.layout import find_manifests
from pytest_autoquant.manifests.records.sensitivity_manifest import (
    GROUP_SUFFIX,
    GroupSensitivity,
    LayerRecord,
    RankedGroup,
    read_manifest,
)
from pytest_autoquant.reports.write import write_case

BLESSED = Path(__file__).parents[1] / "reports" / "baseline"
SEED = 7
PROJECTIONS = {
    "self_attn.q_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}
WIDTH = 2560


def write_manifests(root, *, cases, groups):
    """Write that many manifests, none an alias, each with that many groups."""
    template = read_manifest(find_manifests(BLESSED)[0])
    vocabulary = load_vocabulary()
    grid = product(vocabulary.pairs.values(), vocabulary.granularities, SIZES)
    names = list(islice(_names(), groups))
    for index, (pair, granularity, size) in enumerate(islice(grid, cases)):
        write_case(root, _manifest(template, pair, granularity, size, names, index))


def _names():
    for layer in range(10_000):
        for first, members in PROJECTIONS.items():
            prefix = f"model.language_model.layers.{layer}."
            yield prefix + first, tuple(prefix + member for member in members)


def _manifest(template, pair, granularity, size, names, index):
    random_of = random.Random(SEED + index)  # noqa: S311
    scores = {name: 10 ** random_of.uniform(-6, -2) for name, _ in names}
    ranked = sorted(scores, key=lambda name: -scores[name])
    ranks = {name: rank for rank, name in enumerate(ranked, start=1)}
    case_id = "/".join(("generated", pair.name, granularity, size, "gradient"))
    record = replace(
        template.case,
        case_id=case_id,
        pair=pair.name,
        weight=pair.weight,
        activation=pair.activation,
        granularity=granularity,
        size=size,
        experimental=pair.experimental,
    )
    layers = {
        member: LayerRecord(
            group=name + GROUP_SUFFIX,
            quantized=True,
            selected=ranks[name] > len(names) // 3,
            module_type="Linear",
            out_features=WIDTH,
            in_features=WIDTH,
            padded_to=None,
        )
        for name, members in names
        for member in members
    }
    selected = [name for name, members in names if layers[members[0]].selected]
    overlay = replace(template.quantization.quant_granularity, name=granularity)
    return replace(
        template,
        case=record,
        scheme=replace(template.scheme, quant_formats=(pair.format_name,)),
        dataset=replace(template.dataset, size=size, sha256=size),
        num_quantized_layers=len(layers),
        model=replace(template.model, name="generated", id="generated"),
        quantization=replace(
            template.quantization,
            effective_bits=4 + index % 9,
            base_format_name=pair.format_name,
            quant_granularity=overlay,
        ),
        layers=layers,
        layer_sensitivity={
            name + GROUP_SUFFIX: GroupSensitivity(
                formats=("QUANTIZED", "NONE"),
                scores=(scores[name], 0.0),
                costs=(WIDTH * WIDTH / 4.0, float(WIDTH * WIDTH)),
                importance=scores[name],
                rank=ranks[name],
                module_names=members,
            )
            for name, members in names
        },
        sensitivity_ranking=tuple(
            RankedGroup(name=name + GROUP_SUFFIX, importance=scores[name]) for name in ranked
        ),
        autoquant_state=replace(
            template.autoquant_state,
            total_score=math.fsum(scores.values()),
            score=math.fsum(scores[name] for name in selected),
        ),
    )
