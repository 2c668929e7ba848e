"""The report of check-export, and what it imports."""

import subprocess
import sys

from edited_export import DOWN
from pytest_autoquant.export.vllm_rules import RULES, export_report, find_violations, read_export

IMPORTS = """
import sys
from pathlib import Path
from pytest_autoquant.export.vllm_rules import check_export
found = check_export(Path(sys.argv[1]))
print(len(found), sorted({"torch", "transformers", "modelopt", "pydantic"} & set(sys.modules)))
"""


def report_of(folder):
    export = read_export(folder)
    return export_report(folder, export, find_violations(export))


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
    folder = exported("mixed")
    assert report_of(folder) == (
        f"{folder}: FP8, 22 of 42 linears quantized\n"
        f"no violation of the {len(RULES)} static rules found; not tried in vLLM"
    )


def test_report_names_each_violation_and_its_rule(edited):
    export = edited("mixed")
    export.drop(f"{DOWN}.weight_scale", f"{DOWN}.input_scale")
    folder = export.save()
    assert report_of(folder) == (
        f"exclusion: {DOWN}.weight_scale is missing: the weight is F8_E4M3, and the config "
        "declares FP8\n"
        f"scales: {DOWN}.input_scale is missing\n"
        f"{folder}: FP8, 22 of 42 linears quantized\n"
        "violations: 2, of the rules exclusion, scales; not tried in vLLM"
    )


def test_names_with_control_characters_are_printed_on_one_line_each(edited):
    export = edited("plain")
    export.put("a\n\x1b[2J\u2028b", 1.0)
    export.config["quantization_config"] = {"quant_method": "x\x1b[2J\ny", "quant_algo": "\x9bz\n"}
    lines = report_of(export.save()).splitlines()
    assert [line.partition(":")[0] for line in lines[:3]] == ["algorithm", "algorithm", "names"]
    assert all(line.isprintable() for line in lines)
