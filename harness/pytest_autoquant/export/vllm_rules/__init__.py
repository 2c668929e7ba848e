"""Static rules of vLLM's ModelOpt loader, applied to the files of an exported checkpoint.

vLLM loads several broken exports without an error and then answers with NaN or nonsense. So each
rule is applied to the files: every tensor, both configs, the files a server needs. Nothing is
claimed about what no rule covers, and nothing is loaded in vLLM. Torch is not needed: what tensors
there must be follows from the config's numbers.

Source of all rules: vLLM 0.32.0 as it was published,
``vllm/model_executor/layers/quantization/modelopt.py`` unless a rule names another file or version.
Where a rule is stricter than that version, it says so where it is defined.
"""

from __future__ import annotations

from pytest_autoquant.export.vllm_rules.exported_model import read_export
from pytest_autoquant.export.vllm_rules.report import export_report
from pytest_autoquant.export.vllm_rules.rules import RULES, Findings, check_export, find

__all__ = ["RULES", "Findings", "check_export", "export_report", "find", "read_export"]
