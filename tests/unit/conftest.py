"""A small measured model: three layer groups of one decoder layer, quantized to INT4 x INT8.

Group      members                       weights   summed score   per scored token
attention  q_proj, k_proj, v_proj        131,072             30                  3
output     o_proj                         65,536             10                  1
mlp        gate_proj, up_proj            262,144             60                  6

Ten tokens are scored. Within 8 bits per weight the most sensitive group, mlp, is too large to be
kept at 16 bits; the best choice keeps attention and quantizes the other two.
"""

import time
from dataclasses import fields, replace

import pytest
from builders import HtmlPage, linear, load_tiny
from markdown_it import MarkdownIt
from pytest_autoquant.calibration.batches import Batch, CalibrationData
from pytest_autoquant.calibration.captions import CaptionSet
from pytest_autoquant.formats.effective_config import resolve
from pytest_autoquant.grid.case import Case, Combination
from pytest_autoquant.grid.vocabulary import load_vocabulary
from pytest_autoquant.manifests.case_result import CaseResult, CaseSource, Group, SelectionResult
from pytest_autoquant.manifests.fingerprint import Fingerprint
from pytest_autoquant.manifests.records.scheme_manifest import (
    AllocationRecord,
    FrontierPoint,
    GroupDecision,
    MeasuredDamage,
    SchemeManifest,
    SchemeRecord,
)
from pytest_autoquant.manifests.records.sensitivity_manifest import (
    EnvironmentRecord,
    ExpertTokens,
    MemoryRecord,
    ModelRecord,
    RunConfig,
)
from pytest_autoquant.models.offload.device_map import Offload
from pytest_autoquant.models.offload.max_memory import MaxMemory
from pytest_autoquant.scoring.engine import GroupScore, Measurement
from pytest_autoquant.scoring.manifest.build_manifest import Findings, build_manifest

LAYER = "model.language_model.layers.0"
SHAPES = {
    f"{LAYER}.self_attn.q_proj": (256, 256),
    f"{LAYER}.self_attn.k_proj": (128, 256),
    f"{LAYER}.self_attn.v_proj": (128, 256),
    f"{LAYER}.self_attn.o_proj": (256, 256),
    f"{LAYER}.mlp.gate_proj": (512, 256),
    f"{LAYER}.mlp.up_proj": (512, 256),
}


@pytest.fixture(scope="module")
def tiny():
    """The embedded model that is measured by default, in fp32 on the CPU."""
    return load_tiny()


@pytest.fixture(scope="module")
def offloaded():
    """The same model with every weight on disk."""
    one_layer = MaxMemory(each=4 * 2048 * 128)
    return load_tiny(offload=Offload(max_memory=one_layer))


@pytest.fixture
def combination():
    vocabulary = load_vocabulary()
    return Combination(
        pair=vocabulary.pairs["wint4_aint8"],
        granularity=vocabulary.granularities["a_per_token_dynamic"],
    )


@pytest.fixture
def measurement():
    qkv, o, gate_up = list(SHAPES)[:3], list(SHAPES)[3:4], list(SHAPES)[4:]
    return Measurement(
        engine="modelopt",
        groups=tuple(
            GroupScore(modules=tuple(modules), score=score, quantized=True)
            for modules, score in ((qkv, 30.0), (o, 10.0), (gate_up, 60.0))
        ),
        quantizers={
            "weight_quantizer": "4 bit, blocks of 128",
            "input_quantizer": "8 bit, dynamic",
        },
        timing={"calibrate": 1.5, "score": 2.5},
        peak_cuda_bytes=None,
    )


@pytest.fixture
def data():
    """Three scored captions predict 3 + 3 + 4 tokens, one calibrates, one is too short."""
    lines = (
        "a dog runs fast",
        "two cats sleep here",
        "a red bus drives by",
        "one bird sings",
        "Hm",
    )
    return CalibrationData(
        captions=CaptionSet(name="mine.txt", size="small", requested=16, lines=lines),
        scored=(Batch(rows=((5, 6, 7, 8), (9, 10, 11, 12))), Batch(rows=((5, 13, 14, 15, 16),))),
        unscored=(Batch(rows=((17, 18, 19),)),),
        batch_size=2,
        sha256="c" * 64,
        dropped=("Hm",),
    )


@pytest.fixture
def findings(combination, measurement, data):
    return Findings(
        case=Case(model="toy", combination=combination, size="small", method="gradient"),
        config=resolve(combination.pair, combination.granularity),
        measurement=measurement,
        data=data,
        linears={name: linear(name, *shape) for name, shape in SHAPES.items()},
        alias_of=None,
        notes=("mine.txt holds 5 captions, size small needs 16: measured on 5",),
        model=ModelRecord(
            id="toy-org/toy",
            name="toy",
            architecture="ToyForCausalLM",
            weights="checkpoint",
            dtype="float32",
            num_parameters=1_000_000,
            num_language_model_linears=6,
            digest="d" * 64,
        ),
        environment=EnvironmentRecord(
            harness="0.1.0",
            python="3.11.7",
            torch="2.11.0",
            transformers="5.14.0",
            modelopt="0.47.0",
            cuda=None,
            device="cpu",
            device_name="CPU",
            platform="Linux x86_64",
            host=None,
            user=None,
        ),
        memory=MemoryRecord(peak_rss_bytes=123_456_789, peak_cuda_bytes=None),
        run_config=RunConfig(
            engine="modelopt",
            engine_reason="the only engine",
            device="cpu",
            dtype="float32",
            weights="checkpoint",
            batch_size=2,
            score_size=3,
            effective_bits=8.0,
            seed=0,
        ),
        started=time.perf_counter(),
    )


@pytest.fixture
def manifest(findings):
    return build_manifest(findings)


@pytest.fixture
def of_mixture(findings):
    """The findings with eight fused experts, two per token, in place of the gate and up linears."""
    name = f"{LAYER}.mlp.experts"
    experts = replace(
        linear(name, 1024, 256),
        input_widths=(256, 128),
        expert_shapes=((8, 64, 256), (8, 256, 64)),
        experts_per_token=2,
    )
    *attention, last = findings.measurement.groups
    groups = (*attention, replace(last, modules=(name,)))
    linears = dict(list(findings.linears.items())[:4]) | {name: experts}
    measurement = replace(findings.measurement, groups=groups)
    tokens = {name: ExpertTokens(per_token=2, tokens="8 8 6 6 2 2 0 0")}
    assert sum(tokens[name].counts) == 2 * sum(batch.num_tokens for batch in findings.data.batches)
    return replace(findings, measurement=measurement, linears=linears, expert_tokens=tokens)


@pytest.fixture
def scored(findings):
    """Build the manifest of a model with these groups, of one linear each.

    Scores are per token, or of each of the three captions that predict 10 tokens.
    """

    def group_of(name, score):
        if isinstance(score, tuple):
            return GroupScore(modules=(name,), score=sum(score), quantized=True, per_caption=score)
        total = score * findings.data.scored_tokens
        return GroupScore(modules=(name,), score=total, quantized=True)

    def manifest_of(scores):
        groups = tuple(group_of(*item) for item in scores.items())
        return build_manifest(
            replace(
                findings,
                measurement=replace(findings.measurement, groups=groups),
                linears={name: linear(name, 256, 256) for name in scores},
            )
        )

    return manifest_of


@pytest.fixture(scope="session")
def case_of():
    """Build a case as reports see it; ``scores`` are by group, in module order."""
    known = Fingerprint(**{field.name: "x" for field in fields(Fingerprint)})

    def build(scores=None, **given):
        scores = {f"{LAYER}.mlp.up_proj": 1.0} if scores is None else scores
        names = {"model": "toy", "pair": "wint4_aint8", "granularity": "default"}
        names |= {"size": "small", "method": "gradient"}
        names |= {name: given.pop(name) for name in tuple(given) if name in names}
        ordered = sorted(
            scores, key=lambda name: -float("inf" if scores[name] is None else scores[name])
        )
        groups = tuple(
            Group(
                name=name, score=scores[name], rank=rank, modules=(name,), weights=8, selected=True
            )
            for rank, name in enumerate(ordered, start=1)
        )
        finite = [score for score in scores.values() if score is not None]
        values = {
            "case_id": "/".join(names.values()),
            "status": "measured",
            "alias_of": None,
            "experimental": False,
            "problems": (),
            "notes": (),
            "format_name": "F",
            "effective_bits": 4.25,
            "groups": groups,
            "module_order": tuple(scores),
            "total_score": sum(finite) if len(finite) == len(scores) else None,
            "selection": SelectionResult(),
        }
        source = {"manifest": "/".join((*names.values(), "x.json"))}
        source["fingerprint"] = replace(known, captions=names["size"])
        source |= {name: given.pop(name) for name in CaseSource.__slots__ if name in given}
        return CaseResult(**names, **(values | given), source=CaseSource(**source))

    return build


@pytest.fixture(scope="session")
def render():
    """What a reader of a Markdown document sees: the tables' cells, the links and the text."""

    def rendered(markdown):
        return HtmlPage(MarkdownIt("commonmark").enable("table").render(markdown))

    return rendered


@pytest.fixture
def derived(manifest):
    """A scheme of one group, measured and not exported."""
    return SchemeManifest(
        case_id="toy/schemes/mine/small",
        scheme=SchemeRecord(
            name="mine",
            candidates=("wfp8_afp8",),
            left_out={},
            measure="fraction_of_groups",
            amount=1.0,
            target=None,
        ),
        model=manifest.model,
        dataset=manifest.dataset,
        groups=(
            GroupDecision(
                name="a", modules=("a",), weights=8, format="wfp8_afp8", scores={"wfp8_afp8": 0.5}
            ),
        ),
        allocation=AllocationRecord(
            score=0.5, effective_bits=8.0, fraction_of_groups=1.0, fraction_of_weights=1.0
        ),
        frontier=(FrontierPoint(budget=8.0, effective_bits=8.0, score=0.5),),
        measured=MeasuredDamage(
            kl=1e-3,
            loss=2.0,
            loss_before=1.5,
            agreement=0.97,
            num_tokens=100,
            captions="größe.txt",
            sha256="e" * 64,
        ),
        export=None,
        environment=manifest.environment,
        timing={"score": 1.0},
        memory=manifest.memory,
    )
