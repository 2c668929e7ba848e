"""Checked option values of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pytest_autoquant.allocation.scored_group import Cost
from pytest_autoquant.grid.sharding import Shard
from pytest_autoquant.models.offload.max_memory import MaxMemory
from pytest_autoquant.options.rules import check_rules
from pytest_autoquant.options.table import OPTIONS, Option


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Checked option values; ``OPTIONS`` in ``table`` says what each means."""

    model: str
    model_name: str | None
    revision: str | None
    device: str
    dtype: str
    device_map: str
    max_memory: MaxMemory | None
    offload_dir: Path | None
    weights: str
    captions: Path | None
    sizes: tuple[str, ...]
    pairs: tuple[str, ...]
    granularities: tuple[str, ...]
    conf: Path | None
    schemes: tuple[str, ...]
    target: str
    held_out: Path | None
    max_kl: float | None
    export: bool
    replace_export: bool
    load_vllm: bool
    method: str
    engine: str
    check_scores: bool | None
    whole_model_kl: bool | None
    tape_device: str
    tape_dir: Path | None
    batch_size: int
    max_tokens: int
    score_size: int
    effective_bits: float
    cost: Cost
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
    structure_only: bool
    gpu_only: bool
    cache: bool | None

    @property
    def random_seed(self) -> int | None:
        """Seed of random weights, None to load the checkpoint."""
        return self.seed if self.weights == "random" else None

    def report_root(self, rootdir: Path) -> Path:
        """Return the report folder: ``--aq-report-dir``, else ``reports`` or ``reports/tmp``."""
        if self.report_dir is not None:
            return self.report_dir
        return rootdir / "reports" if self.publish else rootdir / "reports" / "tmp"


@dataclass(frozen=True, slots=True, kw_only=True)
class RawValue:
    """An option's value as written: where, and None where it is not set."""

    value: Any
    origin: str
    is_on_command_line: bool


def read_settings(lookup: Callable[[Option], RawValue]) -> Settings:
    """Check every option and every rule between options.

    Args:
        lookup: returns an option's raw value.

    Raises:
        UsageError: a value that is not allowed, options that contradict each other, or an option
            that has no effect in this run. The message starts with where the value came from.
    """
    raw = {option.name: lookup(option) for option in OPTIONS}
    values = {option.name: _value(option, raw[option.name]) for option in OPTIONS}
    settings = Settings(**{field.name: values[field.name] for field in fields(Settings)})
    check_rules(settings, frozenset(name for name, found in raw.items() if _is_asked_for(found)))
    return settings


def _is_asked_for(raw: RawValue) -> bool:
    """Whether the command line sets the option; a flag that it switches off needs no effect."""
    return raw.is_on_command_line and raw.value is not None and raw.value is not False


def _value(option: Option, raw: RawValue) -> Any:
    if raw.value is None:
        return False if option.is_flag and not option.is_automatic else option.default
    return option.kind.parse(raw.value, raw.origin)
