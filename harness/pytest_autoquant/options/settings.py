"""Every option of the plugin: one table, read from the command line or from ini."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from pytest_autoquant.calibration.sizes import SIZES
from pytest_autoquant.errors import UsageError
from pytest_autoquant.grid.case import METHODS
from pytest_autoquant.grid.sharding import Shard
from pytest_autoquant.manifests.fingerprint import FINGERPRINT_FIELDS
from pytest_autoquant.models.registry import DEFAULT_MODEL, REGISTRY

Kind = Literal[
    "text", "names", "path", "count", "whole", "bits", "share", "drift", "flag", "choice", "part"
]

MAX_BITS = 16.0
MAX_SEED = 2**63 - 1
TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option: ``--aq-<name>`` on the command line, ``aq_<name>`` in ini."""

    name: str
    kind: Kind
    help: str
    default: Any = None
    choices: tuple[str, ...] = ()
    prefix: str = "--aq-"

    @property
    def flag(self) -> str:
        """The command line spelling."""
        return self.prefix + self.name.replace("_", "-")

    @property
    def is_for_gate(self) -> bool:
        """Whether the option means nothing without ``--aq-baseline``."""
        return "baseline" in self.name or self.name.startswith("tol_")

    @property
    def ini(self) -> str:
        """The ini spelling, also the argparse destination."""
        return f"aq_{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Checked option values; see ``OPTIONS`` for what they mean."""

    model: str
    device: str
    dtype: str
    weights: str
    captions: Path | None
    sizes: tuple[str, ...]
    pairs: tuple[str, ...]
    granularities: tuple[str, ...]
    conf: Path | None
    schemes: tuple[str, ...]
    target: str
    held_out: Path | None
    export: bool
    replace_export: bool
    method: str
    engine: str
    tape_device: str
    tape_dir: Path | None
    batch_size: int
    score_size: int
    effective_bits: float
    seed: int
    report_dir: Path | None
    publish: bool
    save_state: bool
    trust_remote_code: bool
    record_host: bool
    shard: Shard | None
    resume: bool
    baseline: Path | None
    update_baseline: bool
    baseline_missing: str
    baseline_allow: tuple[str, ...]
    tol_spearman: float
    tol_top_ten: float
    tol_total: float
    tol_group: float
    tol_selected: int
    list: bool
    report_only: bool
    structure_only: bool
    gpu_only: bool

    @property
    def random_seed(self) -> int | None:
        """The seed of random weights, None to load the checkpoint."""
        return self.seed if self.weights == "random" else None

    def report_root(self, rootdir: Path) -> Path:
        """Where reports go: ``--aq-report-dir``, else ``reports`` or ``reports/tmp``."""
        if self.report_dir is not None:
            return self.report_dir
        return rootdir / "reports" if self.publish else rootdir / "reports" / "tmp"


OPTIONS: tuple[Option, ...] = (
    Option(
        name="model",
        kind="text",
        default=DEFAULT_MODEL,
        help=f"model to measure: {', '.join(REGISTRY)}, a checkpoint folder or a hub id",
    ),
    Option(name="device", kind="text", default="auto", help="auto, cpu, cuda or cuda:N"),
    Option(
        name="dtype",
        kind="choice",
        default="auto",
        choices=("auto", "fp32", "bf16", "fp16"),
        help="compute dtype; auto is bf16 on CUDA and fp32 on CPU",
    ),
    Option(
        name="weights",
        kind="choice",
        default="checkpoint",
        choices=("checkpoint", "random"),
        help="random: seeded random weights of the full architecture, to rehearse time and memory",
    ),
    Option(name="captions", kind="path", help="calibration captions, one per line, UTF-8"),
    Option(name="sizes", kind="names", default=(), help=f"only these sizes: {', '.join(SIZES)}"),
    Option(name="pairs", kind="names", default=(), help="only these quant pairs"),
    Option(name="granularities", kind="names", default=(), help="only these overlays"),
    Option(
        name="conf",
        kind="path",
        help="folder with quant_pair/, quant_granularity/ and scheme/ YAML",
    ),
    Option(
        name="schemes",
        kind="names",
        default=(),
        help="derive these mixed-precision schemes; all for every one; none runs without this",
    ),
    Option(
        name="target",
        kind="choice",
        default="none",
        choices=("none", "vllm"),
        help="leave candidates out of schemes that this runtime cannot load",
    ),
    Option(
        name="held_out",
        kind="path",
        help="captions that measure what a scheme does to the model, one per line, UTF-8",
    ),
    Option(name="export", kind="flag", help="write each scheme as a Hugging Face checkpoint"),
    Option(
        name="replace_export",
        kind="flag",
        help="replace a checkpoint that is there, once the new one is complete",
    ),
    Option(
        name="method",
        kind="choice",
        default="gradient",
        choices=METHODS,
        help="AutoQuant's sensitivity method",
    ),
    Option(
        name="engine",
        kind="choice",
        default="auto",
        choices=("auto", "replay", "modelopt"),
        help="how scores are obtained; auto replays what it can and runs stock AutoQuant otherwise",
    ),
    Option(
        name="tape_device",
        kind="choice",
        default="auto",
        choices=("auto", "cuda", "cpu"),
        help="where the replay engine keeps its tape; auto goes by free GPU memory",
    ),
    Option(
        name="tape_dir",
        kind="path",
        help="keep the replay engine's tapes in this folder and reuse those that fit",
    ),
    Option(name="batch_size", kind="count", default=32, help="most captions in a batch"),
    Option(
        name="score_size",
        kind="count",
        default=128,
        help="most captions scored; all captions of the size calibrate",
    ),
    Option(
        name="effective_bits",
        kind="bits",
        default=8.0,
        help="bit budget per weight over the searched layers, for the selection",
    ),
    Option(name="seed", kind="whole", default=0, help="seed of random weights"),
    Option(name="report_dir", kind="path", help="where manifests and reports go"),
    Option(name="publish", kind="flag", help="write to reports/ instead of reports/tmp/"),
    Option(name="save_state", kind="flag", help="also save ModelOpt's search state per case"),
    Option(name="trust_remote_code", kind="flag", help="let a checkpoint's own Python code run"),
    Option(name="record_host", kind="flag", help="put host and user names into manifests"),
    Option(
        name="shard",
        kind="part",
        help="I/N: only the I-th of N equal parts of the cases, for jobs that start independently",
    ),
    Option(
        name="resume",
        kind="flag",
        help="keep cases whose manifest was measured on the same inputs; run the rest",
    ),
    Option(name="baseline", kind="path", help="compare each case with its manifest in this folder"),
    Option(name="update_baseline", kind="flag", help="write the measured cases to --aq-baseline"),
    Option(
        name="baseline_missing",
        kind="choice",
        default="fail",
        choices=("fail", "skip", "write"),
        help="what to do with a case that has no baseline",
    ),
    Option(
        name="baseline_allow",
        kind="names",
        default=(),
        choices=FINGERPRINT_FIELDS,
        help="fingerprint fields in which a baseline may differ",
    ),
    Option(
        name="tol_spearman",
        kind="share",
        default=0.98,
        help="gate: least rank correlation of the groups with the baseline's",
    ),
    Option(
        name="tol_top_ten",
        kind="share",
        default=0.9,
        help="gate: least share of the ten most sensitive groups that stay among the ten",
    ),
    Option(
        name="tol_total",
        kind="drift",
        default=0.02,
        help="gate: largest relative drift of the total score",
    ),
    Option(
        name="tol_group",
        kind="drift",
        default=0.1,
        help="gate: largest relative drift of any group's score",
    ),
    Option(
        name="tol_selected",
        kind="whole",
        default=2,
        help="gate: most groups that the bit budget may treat otherwise",
    ),
    Option(name="list", kind="flag", help="print pair x granularity with status; run nothing"),
    Option(name="report_only", kind="flag", help="rebuild every report from manifests"),
    Option(name="structure_only", prefix="--", kind="flag", help="run only cases without a model"),
    Option(name="gpu_only", prefix="--", kind="flag", help="run only cases that run AutoQuant"),
)


def read_settings(lookup: Callable[[Option], tuple[Any, str]]) -> Settings:
    """Check every option.

    Args:
        lookup: gives an option's raw value (None when not set) and where it came from.

    Raises:
        UsageError: a value that is not allowed; the message starts with where it came from.
    """
    values = {option.name: _parse(option, *lookup(option)) for option in OPTIONS}
    if values["structure_only"] and values["gpu_only"]:
        raise UsageError(
            "--structure-only and --gpu-only (or their ini options) exclude each other; give one"
        )
    if values["publish"] and values["report_dir"] is not None:
        raise UsageError(
            "--aq-publish and --aq-report-dir (or their ini options) exclude each other; give one"
        )
    if values["export"] and not values["schemes"]:
        raise UsageError(
            "--aq-export (or its ini option) exports schemes; say which with --aq-schemes"
        )
    if values["replace_export"] and not values["export"]:
        raise UsageError(
            "--aq-replace-export (or its ini option) replaces exports; give --aq-export with it"
        )
    if values["baseline"] is None:
        for option in OPTIONS:
            raw, origin = lookup(option)
            if raw is not None and option.is_for_gate and origin == option.flag:
                raise UsageError(f"{origin}: say which folder with --aq-baseline DIR")
    return Settings(**{field.name: values[field.name] for field in fields(Settings)})


def _parse(option: Option, raw: Any, origin: str) -> Any:
    if raw is None:
        return False if option.kind == "flag" else option.default
    if option.kind == "flag":
        return raw if isinstance(raw, bool) else _flag(str(raw), origin)
    if option.kind == "names":
        return _names(raw, option.choices, origin)
    if option.kind == "path":
        return Path(raw).expanduser()
    if option.kind == "part":
        return _part(str(raw), origin)
    if option.kind == "choice":
        return _choice(str(raw), option.choices, origin)
    if option.kind == "text":
        return str(raw)
    return _number(option.kind, str(raw), origin)


def _names(raw: str | Sequence[str], choices: Sequence[str], origin: str) -> tuple[str, ...]:
    text = raw if isinstance(raw, str) else ",".join(raw)
    names = tuple(text.replace(",", " ").split())
    if not names:
        raise UsageError(f"{origin}: names nothing; give names separated by commas")
    return tuple(_choice(name, choices, origin) for name in names) if choices else names


def _part(raw: str, origin: str) -> Shard:
    try:
        return Shard.parse(raw)
    except ValueError:
        raise UsageError(
            f"{origin}: {raw!r} is not allowed; give I/N with I from 1 to N, such as 1/4"
        ) from None


def _choice(raw: str, choices: Sequence[str], origin: str) -> str:
    if raw not in choices:
        raise UsageError(f"{origin}: {raw!r} is not allowed; give {', '.join(choices)}")
    return raw


def _flag(raw: str, origin: str) -> bool:
    if raw.lower() not in TRUE + FALSE:
        raise UsageError(f"{origin}: {raw!r} is neither true nor false")
    return raw.lower() in TRUE


def _number(kind: str, raw: str, origin: str) -> int | float:
    try:
        if kind == "bits":
            bits = float(raw)
            if 0 < bits <= MAX_BITS:
                return bits
        elif kind in ("share", "drift"):
            amount = float(raw)
            if 0 <= amount <= (1 if kind == "share" else sys.float_info.max):
                return amount
        else:
            number = int(raw)
            if (1 if kind == "count" else 0) <= number <= MAX_SEED:
                return number
    except ValueError:
        pass
    allowed = {
        "bits": f"a number above 0 and up to {MAX_BITS:g}",
        "share": "a number from 0 to 1",
        "drift": "a number of at least 0 (0.1 is 10%)",
        "count": "a whole number of at least 1",
        "whole": f"a whole number of at least 0 and at most {MAX_SEED}",
    }
    raise UsageError(f"{origin}: {raw!r} is not allowed; give {allowed[kind]}")
