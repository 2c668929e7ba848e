"""Every option of the plugin, once: ``--aq-<name>`` on the command line, ``aq_<name>`` in ini."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pytest_autoquant.allocation.scored_group import COSTS
from pytest_autoquant.calibration.sizes import SIZES
from pytest_autoquant.grid.case import METHODS
from pytest_autoquant.manifests.fingerprint import FINGERPRINT_FIELDS
from pytest_autoquant.models.registry import DEFAULT_MODEL, REGISTRY
from pytest_autoquant.options.kinds import (
    BITS,
    COUNT,
    DRIFT,
    FLAG,
    MEMORY,
    NAME,
    NATS,
    PATH,
    REVISION,
    SHARD,
    SHARE,
    TEXT,
    TOKENS,
    WHOLE,
    Kind,
    choice,
    names,
)

PREFIX = "--aq-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option.

    Attributes:
        is_for_gate: has no effect without ``--aq-baseline``.
        is_automatic: a flag whose value is None where it is not set: the run decides.
    """

    name: str
    kind: Kind
    help: str
    default: Any = None
    is_for_gate: bool = False
    is_automatic: bool = False

    @property
    def flag(self) -> str:
        """Spelling on the command line."""
        return PREFIX + self.name.replace("_", "-")

    @property
    def off_flag(self) -> str:
        """Spelling that switches a flag off, also when the ini file switches it on."""
        return f"{PREFIX}no-{self.name.replace('_', '-')}"

    @property
    def ini(self) -> str:
        """Spelling in the ini file, also the argparse destination."""
        return f"aq_{self.name}"

    @property
    def is_flag(self) -> bool:
        """Whether the option takes no value."""
        return self.kind is FLAG

    @property
    def help_text(self) -> str:
        """Help with the default value."""
        return self.help if self.default in (None, ()) else f"{self.help} (default: {self.default})"


OPTIONS: tuple[Option, ...] = (
    Option(
        name="model",
        kind=TEXT,
        default=DEFAULT_MODEL,
        help=f"model to measure: {', '.join(REGISTRY)}, a checkpoint folder or a hub id",
    ),
    Option(
        name="model_name",
        kind=NAME,
        help="the model's name in folders, case ids and reports, instead of its folder's or hub id",
    ),
    Option(
        name="revision",
        kind=REVISION,
        help="commit, tag or branch of the model's hub repository, whose config, weights and "
        "tokenizer are read at it; required with --aq-trust-remote-code for a hub id",
    ),
    Option(name="device", kind=TEXT, default="auto", help="auto, cpu, cuda or cuda:N"),
    Option(
        name="dtype",
        kind=choice("auto", "fp32", "bf16", "fp16"),
        default="auto",
        help="compute dtype; auto is bf16 on CUDA and fp32 on CPU",
    ),
    Option(
        name="device_map",
        kind=choice("single", "auto"),
        default="single",
        help="single: the whole model is on one device; auto: accelerate spreads it over the GPUs, "
        "host memory and disk, and its layers are measured one at a time",
    ),
    Option(
        name="max_memory",
        kind=MEMORY,
        help="with --aq-device-map auto, most memory that weights may stay in: a size for each GPU "
        "(for the host where the CPU measures), or sizes by device, such as 0=4GiB,cpu=60GiB; by "
        "default four fifths of what is free",
    ),
    Option(
        name="offload_dir",
        kind=PATH,
        help="with --aq-device-map auto, folder for random weights that no memory holds, instead "
        "of making them again each time, and for those that transformers converts while it loads; "
        "others are read from the checkpoint",
    ),
    Option(
        name="weights",
        kind=choice("checkpoint", "random"),
        default="checkpoint",
        help="random: seeded random weights of the full architecture, to rehearse time and memory",
    ),
    Option(name="captions", kind=PATH, help="calibration captions, one per line, UTF-8"),
    Option(
        name="sizes",
        kind=names(),
        default=(),
        help=f"only these calibration sizes: {', '.join(SIZES)}",
    ),
    Option(name="pairs", kind=names(), default=(), help="only these quant pairs"),
    Option(name="granularities", kind=names(), default=(), help="only these granularities"),
    Option(
        name="conf",
        kind=PATH,
        help="YAML file, or folder with quant_pair/, quant_granularity/ and scheme/ YAML files",
    ),
    Option(
        name="schemes",
        kind=names(),
        default=(),
        help="derive these mixed-precision schemes, or all; none is derived without this option",
    ),
    Option(
        name="target",
        kind=choice("none", "vllm"),
        default="none",
        help="leave out of schemes the candidates that this runtime cannot load",
    ),
    Option(
        name="held_out",
        kind=PATH,
        help="captions on which a scheme's damage is measured, one per line, UTF-8",
    ),
    Option(
        name="max_kl",
        kind=NATS,
        help="fail a scheme, and export nothing, whose measured KL divergence is larger",
    ),
    Option(name="export", kind=FLAG, help="write each scheme as a Hugging Face checkpoint"),
    Option(
        name="replace_export",
        kind=FLAG,
        help="replace an existing checkpoint once the new one is complete",
    ),
    Option(
        name="load_vllm",
        kind=FLAG,
        help="load each exported checkpoint in vLLM, where it is installed, and generate text",
    ),
    Option(
        name="method",
        kind=choice(*METHODS),
        default="gradient",
        help="AutoQuant's sensitivity method, or fisher: about as cheap as gradient, closer to "
        "kl_div",
    ),
    Option(
        name="engine",
        kind=choice("auto", "replay", "modelopt"),
        default="auto",
        help="how scores are obtained; auto replays what it can and runs stock AutoQuant otherwise",
    ),
    Option(
        name="check_scores",
        kind=FLAG,
        is_automatic=True,
        help="measure KL divergence on up to 16 captions beside the gradient scores; by default "
        "for the embedded models at size small",
    ),
    Option(
        name="whole_model_kl",
        kind=FLAG,
        is_automatic=True,
        help="measure each configuration's KL divergence with every layer group quantized beside "
        "the sum of the scores, on all scored captions; by default wherever scores are replayed, "
        "on up to 16 of them",
    ),
    Option(
        name="tape_device",
        kind=choice("auto", "cuda", "cpu"),
        default="auto",
        help="where the replay engine keeps its tape; auto depends on free GPU memory",
    ),
    Option(
        name="tape_dir",
        kind=PATH,
        help="keep the replay engine's tapes in this folder and reuse those that match",
    ),
    Option(name="batch_size", kind=COUNT, default=32, help="most captions in a batch"),
    Option(
        name="max_tokens",
        kind=TOKENS,
        default=512,
        help="most tokens of a caption, never more than the model has positions for; longer ones "
        "are cut",
    ),
    Option(
        name="score_size",
        kind=COUNT,
        default=128,
        help="most captions scored; all captions of the size calibrate",
    ),
    Option(
        name="effective_bits",
        kind=BITS,
        default=10.0,
        help="bit budget per weight over the searched layers, for the selection",
    ),
    Option(
        name="cost",
        kind=choice(*COSTS),
        default="stored",
        help="which weights bit budgets count: all that are stored, or those active for a token, "
        "which of a mixture's experts are the routed ones",
    ),
    Option(name="seed", kind=WHOLE, default=0, help="seed of random weights"),
    Option(
        name="report_dir",
        kind=PATH,
        help="folder of manifests and reports",
    ),
    Option(
        name="publish",
        kind=FLAG,
        help="write to reports/ instead of reports/tmp/",
    ),
    Option(name="save_state", kind=FLAG, help="also save ModelOpt's search state per case"),
    Option(name="trust_remote_code", kind=FLAG, help="let a checkpoint's own Python code run"),
    Option(
        name="record_host",
        kind=FLAG,
        help="record host name, user name and paths in manifests and reports",
    ),
    Option(
        name="shard",
        kind=SHARD,
        help="I/N: only the I-th of N equal parts of the cases, for jobs that start independently",
    ),
    Option(
        name="resume",
        kind=FLAG,
        help="keep cases whose manifest was measured on the same inputs; run the rest",
    ),
    Option(name="baseline", kind=PATH, help="compare each case with its manifest in this folder"),
    Option(
        name="update_baseline",
        kind=FLAG,
        help="write the measured cases to --aq-baseline",
        is_for_gate=True,
    ),
    Option(
        name="baseline_missing",
        kind=choice("fail", "skip", "write"),
        default="fail",
        help="what to do with a case that has no baseline",
        is_for_gate=True,
    ),
    Option(
        name="baseline_allow",
        kind=names(*FINGERPRINT_FIELDS),
        default=(),
        help="fingerprint fields in which a baseline may differ",
        is_for_gate=True,
    ),
    Option(
        name="tol_spearman",
        kind=SHARE,
        default=0.98,
        help="gate: least rank correlation of the groups with the baseline's",
        is_for_gate=True,
    ),
    Option(
        name="tol_top_ten",
        kind=SHARE,
        default=0.9,
        help="gate: least share of the ten most sensitive groups that stay among the ten",
        is_for_gate=True,
    ),
    Option(
        name="tol_total",
        kind=DRIFT,
        default=0.02,
        help="gate: largest relative drift of the total score",
        is_for_gate=True,
    ),
    Option(
        name="tol_group",
        kind=DRIFT,
        default=0.1,
        help="gate: largest relative drift of any group's score",
        is_for_gate=True,
    ),
    Option(
        name="tol_selected",
        kind=WHOLE,
        default=2,
        help="gate: most groups whose selection under the bit budget may change",
        is_for_gate=True,
    ),
    Option(name="structure_only", kind=FLAG, help="run only cases that need no model"),
    Option(name="gpu_only", kind=FLAG, help="run only cases that run AutoQuant"),
    Option(
        name="cache",
        kind=FLAG,
        is_automatic=True,
        help="remember in the user's cache folder which quantizers run on this machine, by "
        "versions and kind of device; on by default",
    ),
)

BY_NAME = {option.name: option for option in OPTIONS}
