"""The pair x granularity matrix that ``aq-harness list`` prints: its data, and its text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from pytest_autoquant.errors import AutoquantError
from pytest_autoquant.formats.effective_config import EffectiveConfig
from pytest_autoquant.grid.case import Combination
<<<<<<< HEAD
from pytest_autoquant.modelopt_support.probe import Prober, misfits
from pytest_autoquant.modelopt_support.status import Status, Support
from pytest_autoquant.models.loading import Linear, architecture_linears
=======
from pytest_autoquant.modelopt_support.status import Status
from pytest_autoquant.modelopt_support.support_matrix import padded_layers, support_matrix
from pytest_autoquant.models.loading import architecture_linears
>>>>>>> main
from pytest_autoquant.models.registry import ModelSource

_SHORT = {
    Status.SUPPORTED: "ok",
    Status.NEEDS_CUDA: "cuda",
    Status.UNSUPPORTED: "no",
    Status.NO_EFFECT: "-",
}
_KEY = "ok: runs   =: alias, measured once   cuda: needs-cuda   no: unsupported   -: no-effect"

#: Combinations that a reason or an alias names before "and N more".
_NAMED = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One combination.

    Attributes:
        alias_of: the first supported combination with the same effective config, None for itself.
    """
<<<<<<< HEAD

    combination: Combination
    config: EffectiveConfig
    support: Support
    alias_of: Combination | None

    @property
    def mark(self) -> str:
        """The cell's text in the table."""
        return "=" if self.alias_of is not None else _SHORT[self.support.status]


@dataclass(frozen=True, slots=True, kw_only=True)
class SupportMatrix:
    """Every selected combination on one device."""

    device: str
    cells: tuple[Cell, ...]


def build_matrix(prober: Prober, device: str, combinations: Iterable[Combination]) -> SupportMatrix:
    """Probe each combination."""
    first: dict[str, Combination] = {}
    cells: list[Cell] = []
    for combination in combinations:
        config = prober.resolve(combination.pair, combination.granularity)
        support = prober.support(config)
        original = first.setdefault(config.digest, combination)
        is_alias = support.is_supported and original is not combination
        cells.append(
            Cell(
                combination=combination,
                config=config,
                support=support,
                alias_of=original if is_alias else None,
            )
        )
    return SupportMatrix(device=device, cells=tuple(cells))
=======
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
>>>>>>> main


def render_matrix(matrix: SupportMatrix) -> str:
    """Return the table, then every reason with its combinations, then the aliases."""
    return "\n".join(
        [
            f"on {matrix.device}:",
            _table(matrix.cells),
            "",
            _KEY,
            "",
            *_reasons(matrix.cells),
            "",
            *_aliases(matrix.cells),
        ]
    )


def _table(cells: Sequence[Cell]) -> str:
    columns = dict.fromkeys(cell.combination.granularity.name for cell in cells)
    rows: dict[str, list[str]] = {}
    for cell in cells:
        pair = cell.combination.pair
        name = f"{pair.name} *" if pair.experimental else pair.name
        rows.setdefault(name, [name]).append(cell.mark)
    headers = ["pair (* experimental)", *columns]
    return tabulate(list(rows.values()), headers=headers, tablefmt="simple")


def _reasons(cells: Sequence[Cell]) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for cell in cells:
        if not cell.support.is_supported:
            reasons.setdefault(cell.support.skip_reason, []).append(cell.combination.test_id)
    return [f"{reason}\n    {_first_few(ids)}" for reason, ids in reasons.items()]


def _aliases(cells: Sequence[Cell]) -> list[str]:
    aliases: dict[str, list[str]] = {}
    for cell in cells:
        if cell.alias_of is not None:
            aliases.setdefault(cell.alias_of.test_id, []).append(cell.combination.test_id)
    return [f"{original} = {', '.join(ids)}" for original, ids in aliases.items()]


def padded_widths(
    matrix: SupportMatrix, source: ModelSource, *, trust_remote_code: bool
) -> list[str]:
    """Return a line per layer whose input width is no multiple of a block size.

    The widths come from the model's config; no weights are loaded.
    """
    try:
        linears = architecture_linears(source, trust_remote_code=trust_remote_code)
    except AutoquantError as error:
        return [f"layer widths unknown: {error}"]
<<<<<<< HEAD
    lines = [line for cell in matrix.cells for line in _padded(cell, linears)]
    return list(dict.fromkeys(lines))
=======
    configs = map(bench.config, combinations)
    return [
        f"{each.granularity} on w{each.weight_dtype}: {each.linear} is {each.in_features} wide, "
        f"padded to {each.padded_to}"
        for each in padded_layers(configs, linears)
    ]
>>>>>>> main


def _padded(cell: Cell, linears: Sequence[Linear]) -> Iterable[str]:
    combination = cell.combination
    subject = f"{combination.granularity.name} on w{combination.pair.weight}"
    for linear in linears:
        for width in linear.input_widths:
            padded = misfits(cell.config, width)
            if padded is not None:
                yield f"{subject}: {linear.name} is {width} wide, padded to {padded}"


def _first_few(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return ", ".join(ids[:_NAMED]) + more
