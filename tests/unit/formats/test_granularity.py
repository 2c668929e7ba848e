"""The built-in granularities (overlays)."""

from pytest_autoquant.formats.granularity import builtin_granularities

PER_TOKEN = {"type": "dynamic", "block_sizes": {-1: None}}
OVERRIDES = {
    "default": {},
    "recipe_match_channel_token": {"*weight_quantizer": {"axis": 0}, "*input_quantizer": PER_TOKEN},
    "w_per_tensor": {"*weight_quantizer": {"axis": None}},
    "w_per_out_channel": {"*weight_quantizer": {"axis": 0}},
    "w_per_in_channel": {"*weight_quantizer": {"axis": 1}},
    "w_group64": {"*weight_quantizer": {"block_sizes": {-1: 64}}},
    "w_group128": {"*weight_quantizer": {"block_sizes": {-1: 128}}},
    "a_per_token_dynamic": {"*input_quantizer": PER_TOKEN},
    "a_per_tensor_static": {"*input_quantizer": {"type": "static", "axis": None}},
    "a_per_hidden_channel": {"*input_quantizer": {"axis": -1}},
}


def test_built_in_overlays_override_what_their_names_say():
    overlays = builtin_granularities()
    assert list(overlays) == list(OVERRIDES)
    assert {name: overlay.overrides for name, overlay in overlays.items()} == OVERRIDES
    assert [overlay.name for overlay in overlays.values()] == list(OVERRIDES)
