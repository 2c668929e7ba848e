"""Every option of the plugin: one table, read from the command line or from ini."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from harness.case import METHODS, SIZES
from harness.errors import VocabularyError
from harness.registry import DEFAULT_MODEL, REGISTRY

Kind = Literal["text", "names", "path", "count", "seed", "bits", "flag", "choice"]

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
    Option(name="conf", kind="path", help="folder with quant_pair/ and quant_granularity/ YAML"),
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
    Option(name="seed", kind="seed", default=0, help="seed of random weights"),
    Option(name="report_dir", kind="path", help="where manifests and reports go"),
    Option(name="publish", kind="flag", help="write to reports/ instead of reports/tmp/"),
    Option(name="save_state", kind="flag", help="also save ModelOpt's search state per case"),
    Option(name="trust_remote_code", kind="flag", help="let a checkpoint's own Python code run"),
    Option(name="record_host", kind="flag", help="put host and user names into manifests"),
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
        VocabularyError: a value that is not allowed; the message starts with where it came from.
    """
    values = {option.name: _parse(option, *lookup(option)) for option in OPTIONS}
    if values["structure_only"] and values["gpu_only"]:
        raise VocabularyError(
            "--structure-only and --gpu-only (or their ini options) exclude each other; give one"
        )
    if values["publish"] and values["report_dir"] is not None:
        raise VocabularyError(
            "--aq-publish and --aq-report-dir (or their ini options) exclude each other; give one"
        )
    return Settings(**{field.name: values[field.name] for field in fields(Settings)})


def _parse(option: Option, raw: Any, origin: str) -> Any:
    if raw is None:
        return False if option.kind == "flag" else option.default
    if option.kind == "flag":
        return raw if isinstance(raw, bool) else _flag(str(raw), origin)
    if option.kind == "names":
        return _names(raw, origin)
    if option.kind == "path":
        return Path(raw).expanduser()
    if option.kind == "choice":
        return _choice(str(raw), option.choices, origin)
    if option.kind == "text":
        return str(raw)
    return _number(option.kind, str(raw), origin)


def _names(raw: str | Sequence[str], origin: str) -> tuple[str, ...]:
    text = raw if isinstance(raw, str) else ",".join(raw)
    names = tuple(text.replace(",", " ").split())
    if not names:
        raise VocabularyError(f"{origin}: names nothing; give names separated by commas")
    return names


def _choice(raw: str, choices: Sequence[str], origin: str) -> str:
    if raw not in choices:
        raise VocabularyError(f"{origin}: {raw!r} is not allowed; give {', '.join(choices)}")
    return raw


def _flag(raw: str, origin: str) -> bool:
    if raw.lower() not in TRUE + FALSE:
        raise VocabularyError(f"{origin}: {raw!r} is neither true nor false")
    return raw.lower() in TRUE


def _number(kind: str, raw: str, origin: str) -> int | float:
    try:
        if kind == "bits":
            bits = float(raw)
            if 0 < bits <= MAX_BITS:
                return bits
        else:
            number = int(raw)
            if (1 if kind == "count" else 0) <= number <= MAX_SEED:
                return number
    except ValueError:
        pass
    allowed = {
        "bits": f"a number above 0 and up to {MAX_BITS:g}",
        "count": "a whole number of at least 1",
        "seed": f"a whole number of at least 0 and at most {MAX_SEED}",
    }
    raise VocabularyError(f"{origin}: {raw!r} is not allowed; give {allowed[kind]}")
