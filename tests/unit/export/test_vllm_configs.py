"""Configs of an export that are missing, damaged or of another type."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pytest_autoquant.errors import ExportError
from pytest_autoquant.export.checkpoint_files import WEIGHTS
from pytest_autoquant.export.vllm_rules import check_export, read_export
from pytest_autoquant.export.vllm_rules.configs import CONFIG, HF_CONFIG


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda it: it.config.pop("architectures"),
            "config.json: no vLLM name mapping for architecture None; supported: "
            "Qwen3VLForConditionalGeneration, Qwen2_5_VLForConditionalGeneration",
        ),
        (lambda it: it.config.update(architectures=[]), "for architecture None; supported: "),
        (lambda it: it.config.update(architectures=[["x"]]), "for architecture ['x']; supported: "),
        (
            lambda it: it.config.update(architectures=["Qwen3VLMoeForConditionalGeneration"]),
            "for architecture 'Qwen3VLMoeForConditionalGeneration'; supported: ",
        ),
        (
            lambda it: it.config.update(quantization_config=[]),
            "config.json: quantization_config must be an object, got []",
        ),
        (lambda it: it.declared.update(quant_algo=8), "quant_algo must be a string, got 8"),
        (lambda it: it.declared.update(quant_method={}), "quant_method must be a string, got {}"),
        (lambda it: it.declared.update(ignore="x"), "ignore must be a list, got 'x'"),
        (
            lambda it: it.declared.update(ignore=[1]),
            "ignore must be a list of module names, got [1]",
        ),
        (
            lambda it: it.declared.update(quantized_layers=["x"]),
            "quantized_layers must be an object, got ['x']",
        ),
        (
            lambda it: it.declared.update(quantized_layers={"x": {}}),
            "quantized_layers['x'] must be an object with quant_algo, got {}",
        ),
        (
            lambda it: it.hf_config.pop("quantization"),
            "hf_quant_config.json: quantization must be an object, got None",
        ),
        (lambda it: it.hf_declared.update(exclude_modules={}), "exclude_modules must be a list"),
        (
            lambda it: it.hf_declared.update(kv_cache_quant_algo=8),
            "kv_cache_quant_algo must be a string, got 8",
        ),
    ],
)
def test_config_of_another_type_is_refused(edited, edit, message):
    export = edited("fp8")
    edit(export)
    folder = export.save()
    with pytest.raises(ExportError) as error:
        check_export(folder)
    assert str(error.value).startswith(str(folder))
    assert message in str(error.value)


def test_config_and_hf_config_declare_the_same(edited):
    config, hf_config = read_export(edited("cache").save()).quantizations
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
    export = edited("one")
    export.tensors = {name: each for name, each in export.tensors.items() if "layers.0." in name}
    folder = export.save()
    contents = {name: (folder / name).read_bytes() for name in (CONFIG, HF_CONFIG, WEIGHTS)}
    outcomes = []

    @settings(
        deadline=None,
        derandomize=True,
        database=None,
        max_examples=150,
        suppress_health_check=[HealthCheck.too_slow],
    )
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
            outcomes.append(check_export(folder))
        except ExportError as error:
            outcomes.append(str(error))
        finally:
            (folder / name).write_bytes(contents[name])

    damage()
    kinds = {type(outcome) for outcome in outcomes}
    assert kinds == {str, tuple}
    assert {bool(outcome) for outcome in outcomes if isinstance(outcome, tuple)} == {False, True}
