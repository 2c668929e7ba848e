"""The pair x granularity matrix that ``--aq-list`` prints."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from pytest_autoquant.errors import AutoquantError
from pytest_autoquant.grid.case import Combination
from pytest_autoquant.modelopt_support.status import Status
from pytest_autoquant.modelopt_support.support_matrix import padded_layers, support_matrix
from pytest_autoquant.models.loading import architecture_linears
from pytest_autoquant.models.registry import ModelSource
from pytest_autoquant.plugin.session import AutoquantSession
from pytest_autoquant.scoring.runner import MeasurementRunner

_SHORT = {
    Status.SUPPORTED: "ok",
    Status.NEEDS_CUDA: "cuda",
    Status.UNSUPPORTED: "no",
    Status.NO_EFFECT: "-",
}


def matrix_report(session: AutoquantSession) -> str:
    """Return the matrix of a session's combinations, and the layers that blocks do not divide."""
    bench = session.bench(lambda *_: None, print)
    trust = session.settings.trust_remote_code
    widths = layer_misfits(bench, session.source, session.combinations, trust=trust)
    return "\n".join([render_matrix(bench, session.combinations), *widths])


def render_matrix(bench: MeasurementRunner, combinations: Sequence[Combination]) -> str:
    """Return the matrix with one status per cell, then every reason with its combinations.

    ``=`` marks an alias: the same effective config as a combination before it.
    """
    cells: dict[tuple[str, str], str] = {}
    reasons: dict[str, list[str]] = {}
    aliases: dict[str, list[str]] = {}
    for each in support_matrix(bench, combinations):
        combination, support = each.combination, each.support
        cells[combination.pair.name, combination.granularity.name] = (
            _SHORT[support.status] if each.alias_of is None else "="
        )
        if not support.is_supported:
            reasons.setdefault(support.skip_reason, []).append(combination.test_id)
        elif each.alias_of is not None:
            aliases.setdefault(each.alias_of.test_id, []).append(combination.test_id)
    columns = list(dict.fromkeys(c.granularity.name for c in combinations))
    pairs = {c.pair.name: c.pair for c in combinations}
    rows = [
        [name + (" *" if pair.experimental else ""), *(cells.get((name, g), "") for g in columns)]
        for name, pair in pairs.items()
    ]
    key = "ok: runs   =: alias, measured once   cuda: needs-cuda   no: unsupported   -: no-effect"
    table = tabulate(rows, headers=["pair (* experimental)", *columns], tablefmt="simple")
    why = [f"{reason}\n    {_wrapped(ids)}" for reason, ids in reasons.items()]
    same = [f"{original} = {', '.join(ids)}" for original, ids in aliases.items()]
    return "\n".join([f"on {bench.device}:", table, "", key, "", *why, "", *same])


def layer_misfits(
    bench: MeasurementRunner,
    source: ModelSource,
    combinations: Sequence[Combination],
    *,
    trust: bool,
) -> list[str]:
    """Say which layers' input widths a block size does not divide, from the config alone."""
    try:
        linears = architecture_linears(source, trust_remote_code=trust)
    except AutoquantError as error:
        return [f"layer widths unknown: {error}"]
    configs = map(bench.config, combinations)
    return [
        f"{each.granularity} on w{each.weight_dtype}: {each.linear} is {each.in_features} wide, "
        f"padded to {each.padded_to}"
        for each in padded_layers(configs, linears)
    ]


def _wrapped(ids: Sequence[str], most: int = 6) -> str:
    more = f" and {len(ids) - most} more" if len(ids) > most else ""
    return ", ".join(ids[:most]) + more
