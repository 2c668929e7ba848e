"""One record of every kind, with a value in every optional part."""

from dataclasses import replace

import pytest
from builders import structure_check
from pytest_autoquant.manifests.records.outcomes import FailedCase, SkippedCase
from pytest_autoquant.manifests.records.scheme_manifest import (
    ExportRecord,
    GroupDecision,
    ViolationRecord,
)
from pytest_autoquant.manifests.records.session_summary import (
    GroupShare,
    LastRun,
    OutcomeCounts,
    SessionSummary,
    SummaryCase,
)


@pytest.fixture
def scheme(derived):
    """Two groups of which one is quantized and exported."""
    unquantized = GroupDecision(
        name="b", modules=("b", "c"), weights=64, format=None, scores={"wfp8_afp8": 2.5}
    )
    export = ExportRecord(
        bytes_before=1024,
        bytes_after=512,
        num_quantized=1,
        largest_error=1e-7,
        num_identical=3,
        violations=(ViolationRecord(rule="scales", tensor="c", text="<b>|\n"),),
        load="not tried",
        load_text="vLLM is not installed here",
        warnings=(ViolationRecord(rule="files", tensor="d", text="is missing"),),
        not_checked="the rules fusion: <i>",
    )
    fractions = {"fraction_of_groups": 0.5, "fraction_of_weights": 8 / 72}
    left_out = {"wint4_afp16": "vllm cannot load wint4_afp16, exported as W4A16_AWQ"}
    return replace(
        derived,
        scheme=replace(derived.scheme, left_out=left_out, target="vllm"),
        groups=(*derived.groups, unquantized),
        allocation=replace(derived.allocation, **fractions),
        export=export,
    )


@pytest.fixture
def summary():
    """One outcome of every kind."""
    counts = OutcomeCounts(measured=1, skipped=1, failed=1, structure=1, gated=1, lost=1)
    case = SummaryCase(
        case_id="toy/p/g/small/gradient",
        pair="p",
        granularity="g",
        size="small",
        status="measured",
        alias_of=None,
        experimental=False,
        problems=(),
        effective_bits=4.25,
        total_score=10.0,
        top_group="mlp",
        selected_groups=2,
        manifest="toy/p/g/small/x.json",
        num_groups=3,
        selection_bits=7.5,
        is_satisfied=True,
    )
    return SessionSummary(
        counts=counts,
        shard="2/3",
        command="pytest --aq-pairs all",
        last_run=LastRun(counts=counts, cases=("a",), structure=(("p", "g"),), is_finished=False),
        cases=(case,),
        skipped=(SkippedCase(case_id="a", status="needs-cuda", reason="", effective_bits=4.25),),
        errors=(FailedCase(case_id="e", problem="out of memory"),),
        gated={"toy/p/g/small/gradient": "drifted"},
        reruns={"toy/p/g/small/gradient": "torch 1 -> 2"},
        kept=("k",),
        lost=("l",),
        structure=(structure_check(),),
        most_sensitive_groups=(GroupShare(group="mlp", mean_share=0.6),),
        left_out=("x.json: is not JSON",),
        write_errors=("y.json: cannot be written: No space left on device",),
    )
