"""The report of check-export, and what it imports."""

import math
import subprocess
import sys

import pytest
from edited_export import DOWN
from pytest_autoquant.export.vllm_rules import RULES, export_report, find, read_export

IMPORTS = """
import sys
from pathlib import Path
from pytest_autoquant.export.vllm_rules import check_export
found = check_export(Path(sys.argv[1]))
heavy = {"torch", "transformers", "modelopt", "pydantic"}
print(len(found.violations), sorted(heavy & set(sys.modules)))
"""


def report_of(folder):
    export = read_export(folder)
    return export_report(folder, export, find(export))


def test_rules_import_no_torch(exported):
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, exported("fp8")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("0 []\n", "")


def test_report_of_a_valid_export_lists_what_was_checked(exported):
    folder = exported("one")
    assert report_of(folder) == (
        "warning, files: chat_template.jinja is missing: vLLM refuses chat requests, unless it is "
        "given a template\n"
        f"{folder}: FP8, 1 of 42 linears quantized\n"
        f"no violation of the {len(RULES)} static rules found; not tried in vLLM"
    )


def test_report_names_each_violation_and_its_rule(edited):
    export = edited("one")
    export.companions["chat_template.jinja"] = b"{{ messages }}"
    export.drop(f"{DOWN}.weight_scale", f"{DOWN}.input_scale")
    folder = export.save()
    assert report_of(folder) == (
        f"exclusion: {DOWN}.weight_scale is missing: the weight is F8_E4M3, and the config "
        "declares FP8\n"
        f"scales: {DOWN}.input_scale is missing: vLLM loads the checkpoint and computes with a "
        "scale that is not set\n"
        f"{folder}: FP8, 1 of 42 linears quantized\n"
        "violations: 2, of the rules exclusion, scales; not tried in vLLM"
    )


def test_names_with_control_characters_are_printed_on_one_line_each(edited):
    export = edited("plain")
    export.put("a\n\x1b[2J\u2028b", 1.0)
    export.config["quantization_config"] = {"quant_method": "x\x1b[2J\ny", "quant_algo": "\x9bz\n"}
    lines = report_of(export.save()).splitlines()
    assert [line.partition(":")[0] for line in lines[:3]] == ["algorithm", "algorithm", "tensors"]
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("architectures", [None, [], [["x"]], ["Qwen3\n\x1b[2JVLMoe"]])
def test_rules_that_need_a_known_architecture_are_not_checked_without_one(edited, architectures):
    export = edited("one")
    export.config["architectures"] = architectures
    export.put("b.weight_scale", math.nan)
    folder = export.save()
    *found, holds, not_checked, summary = report_of(folder).splitlines()
    assert found == ["values: b.weight_scale holds 1 value that is not finite"]
    assert holds == f"{folder}: FP8"
    name = (
        "Qwen3 [2JVLMoe" if architectures == ["Qwen3\n\x1b[2JVLMoe"] else "an unnamed architecture"
    )
    assert not_checked.startswith(
        "not checked: the rules tensors, unquantized, exclusion, fusion, shared-scales, scales, "
        "kv-cache, vision: "
        f"the names in vLLM of {name} are not known here; known: LlamaForCausalLM, "
    )
    assert summary == "violations: 1, of the rules values; not tried in vLLM"
