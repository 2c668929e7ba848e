"""Configs of an export that are missing, damaged or of another type."""

import pytest
from fuzz import fuzz
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest_autoquant.errors import ExportError
from pytest_autoquant.export.checkpoint.files import WEIGHTS
from pytest_autoquant.export.vllm_rules import check_export, read_export
from pytest_autoquant.export.vllm_rules.configs import CONFIG, HF_CONFIG


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("config", {"text_config": [1]}, "config.json: text_config must be an object, got [1]"),
        (
            "config",
            {"vision_config": {"hidden_size": 64}},
            "config.json: intermediate_size must be a whole number from 0 to ",
        ),
        (
            "config",
            {"text_config": {"hidden_size": 8, "vocab_size": 8, "num_hidden_layers": 10**12}},
            "num_hidden_layers must be a whole number from 0 to 1024, got 1000000000000",
        ),
        (
            "config",
            {"quantization_config": []},
            "config.json: quantization_config must be an object, got []",
        ),
        ("declared", {"quant_algo": 8}, "quant_algo must be a string, got 8"),
        ("declared", {"quant_method": {}}, "quant_method must be a string, got {}"),
        ("declared", {"ignore": "x"}, "ignore must be a list, got 'x'"),
        ("declared", {"ignore": [1]}, "ignore must be a list of module names, got [1]"),
        ("declared", {"quantized_layers": ["x"]}, "quantized_layers must be an object, got ['x']"),
        (
            "declared",
            {"quantized_layers": {"x": {}}},
            "quantized_layers['x'] must be an object with quant_algo, got {}",
        ),
        (
            "hf_config",
            {"quantization": None},
            "hf_quant_config.json: quantization must be an object, got None",
        ),
        ("hf_declared", {"exclude_modules": {}}, "exclude_modules must be a list"),
        ("hf_declared", {"kv_cache_quant_algo": 8}, "kv_cache_quant_algo must be a string, got 8"),
    ],
)
def test_config_of_another_type_is_refused(edited, part, change, message):
    export = edited("one")
    getattr(export, part).update(change)
    folder = export.save()
    with pytest.raises(ExportError) as error:
        check_export(folder)
    assert str(error.value).startswith(str(folder))
    assert message in str(error.value)


def test_config_and_hf_config_declare_the_same(exported):
    config, hf_config = read_export(exported("cache")).quantizations
    assert (config.source, hf_config.source) == (CONFIG, HF_CONFIG)
    assert (config.method, hf_config.method) == ("modelopt", None)
    assert config.algorithm == hf_config.algorithm == "FP8"
    assert config.kv_cache == hf_config.kv_cache == "FP8"
    assert set(config.excluded) == set(hf_config.excluded) >= {"lm_head"}


def test_missing_folder_is_refused(tmp_path):
    for folder in (tmp_path / "missing", tmp_path / ("x" * 3000)):
        with pytest.raises(ExportError, match="no such folder; give one that holds an exported"):
            check_export(folder)


def test_damaged_bytes_raise_export_errors_only(edited):
    """Some damage is refused and some changes nothing that a rule reads; nothing else is raised."""
    folder = edited("one").save()
    contents = {name: (folder / name).read_bytes() for name in (CONFIG, HF_CONFIG, WEIGHTS)}
    outcomes = set()

    @settings(fuzz, max_examples=100)
    @given(data=st.data())
    def damage(data):
        name = data.draw(st.sampled_from(sorted(contents)))
        content = bytearray(contents[name])
        reach = min(len(content), 1500)
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, reach - 1))] = data.draw(
                st.integers(0, 255) | st.sampled_from(b'019-{}[]":,*.')
            )
        (folder / name).write_bytes(content)
        try:
            outcomes.add("violations" if check_export(folder).violations else "valid")
        except ExportError:
            outcomes.add("error")
        finally:
            (folder / name).write_bytes(contents[name])

    damage()
    assert outcomes == {"violations", "valid", "error"}
