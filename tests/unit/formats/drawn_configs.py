"""Hypothesis strategies for ModelOpt configs and overlays.

A base config is drawn once as rows and written in either of ModelOpt's forms. A row is (quantizer
name, parent class or None, attributes or None, enabled).
"""

import copy

from hypothesis import strategies as st
from pytest_autoquant.formats.quant_pair import INPUT_QUANTIZER, WEIGHT_QUANTIZER
from pytest_autoquant.formats.user_yaml import granularity_of

PATTERNS = (WEIGHT_QUANTIZER, INPUT_QUANTIZER)


def list_form(rows, algorithm="max"):
    """The config as ModelOpt 0.44 and later take it."""
    entries = []
    for name, parent_class, attributes, enabled in rows:
        entry = {"parent_class": parent_class} if parent_class else {}
        entry["quantizer_name"] = name
        if attributes is not None:
            entry["cfg"] = copy.deepcopy(attributes)
        if not enabled:
            entry["enable"] = False
        entries.append(entry)
    return {"quant_cfg": entries, "algorithm": algorithm}


def dict_form(rows, algorithm="max"):
    """The config as ModelOpt before 0.44 took it."""
    quant_cfg = {}
    for name, parent_class, attributes, enabled in rows:
        value = copy.deepcopy(attributes or {}) | ({} if enabled else {"enable": False})
        key = "default" if name == "*" else name
        quant_cfg[parent_class or key] = {name: value} if parent_class else value
    return {"quant_cfg": quant_cfg, "algorithm": algorithm}


def overlay(raw):
    """The overlay that a YAML file with these overrides gives."""
    return granularity_of({"name": "drawn", "quant_cfg_overrides": raw}, source="test")


_types = st.fixed_dictionaries({"type": st.sampled_from(["static", "dynamic"])})
_axes = st.fixed_dictionaries({"axis": st.sampled_from([None, 0, 1, -1, (0, 1)])})
_block_values = st.sampled_from([None, 16, 32, 64, 128])
_block_sizes = st.fixed_dictionaries(
    {-1: _block_values},
    optional={
        -2: _block_values,
        "type": st.sampled_from(["static", "dynamic"]),
        "scale_bits": st.sampled_from([(8, 0), (4, 3)]),
    },
)
_scales = _axes | st.fixed_dictionaries({"block_sizes": _block_sizes})
attributes = st.builds(
    lambda dtype, scale, scaling_type, others: {**dtype, **scale, **scaling_type, **others},
    st.fixed_dictionaries({"num_bits": st.sampled_from([4, 8, (4, 3), (2, 1)])}),
    st.just({}) | _scales,
    st.just({}) | _types,
    st.fixed_dictionaries(
        {}, optional={"fake_quant": st.just(True), "effective_bits": st.just(4.5)}
    ),
)
_quantizers = st.tuples(attributes, st.just(True)) | st.tuples(
    st.none() | attributes, st.just(False)
)
_OTHER_ROWS = (
    ("*lm_head*", None, None, False),
    ("*output_quantizer", None, {"num_bits": 8, "axis": None}, True),
    ("*router*", None, {"num_bits": 8}, False),
    ("*weight_quantizer", "nn.Embedding", {"num_bits": 4, "axis": 0}, True),
    ("*", "nn.BatchNorm1d", None, False),
)


@st.composite
def _bases(draw):
    quantized = [(name, None, *draw(_quantizers)) for name in PATTERNS]
    others = draw(st.lists(st.sampled_from(_OTHER_ROWS), unique_by=lambda row: row[:2]))
    rows = [("*", None, None, False), *draw(st.permutations(quantized + others))]
    algorithm = draw(st.sampled_from([None, "max", {"method": "smoothquant", "alpha": 0.5}]))
    return rows, algorithm


bases = _bases()
#: Overrides with integer axes, as YAML gives them.
raw_overlays = st.dictionaries(
    st.sampled_from(PATTERNS),
    _types | _scales | st.builds(lambda scale, kind: scale | kind, _scales, _types),
    min_size=1,
)
overlays = raw_overlays.map(overlay)
