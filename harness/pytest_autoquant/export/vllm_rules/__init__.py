"""Static rules of vLLM's ModelOpt loader, applied to the files of an exported checkpoint.

vLLM loads several broken exports without an error and then answers with NaN or nonsense. So each
rule is applied to the files: safetensors headers, FP32 scales, both configs. Nothing is claimed
about what no rule covers, and nothing is loaded in vLLM. Torch is not needed.

Source of all rules: vLLM 0.32, ``vllm/model_executor/layers/quantization/modelopt.py``, unless a
rule names another file. Two rules are stricter than that version, and say so where they are
defined: the algorithms of MIXED_PRECISION, and a quantized vision tower.
"""

from __future__ import annotations

from pytest_autoquant.export.vllm_rules.exported_model import read_export
from pytest_autoquant.export.vllm_rules.report import export_report
from pytest_autoquant.export.vllm_rules.rules import RULES, check_export, find_violations

__all__ = ["RULES", "check_export", "export_report", "find_violations", "read_export"]
