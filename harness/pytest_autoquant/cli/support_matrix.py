"""The text of the pair x granularity matrix that ``aq-harness list`` prints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tabulate import tabulate

from pytest_autoquant.modelopt_support.status import Status
from pytest_autoquant.modelopt_support.support_matrix import CombinationSupport, PaddedLayer
from pytest_autoquant.text import counted

_SHORT = {
    Status.SUPPORTED: "ok",
    Status.NEEDS_CUDA: "cuda",
    Status.UNSUPPORTED: "no",
    Status.NO_EFFECT: "-",
}
_KEY = "ok: runs   =: alias, measured once   cuda: needs-cuda   no: unsupported   -: no-effect"

#: Combinations that a reason names before "and N more".
_NAMED = 6


def render_matrix(device: str, cells: Sequence[CombinationSupport]) -> str:
    """Return the table, then every reason with its combinations, then the aliases."""
    return "\n".join(
        [f"on {device}:", _table(cells), "", _KEY, "", *_reasons(cells), "", *_aliases(cells)]
    )


def render_padded(layers: Iterable[PaddedLayer]) -> list[str]:
    """Return a line per input width that is not a multiple of a block size: where, how often."""
    found: dict[tuple[int, int], list[PaddedLayer]] = {}
    for each in layers:
        found.setdefault((each.in_features, each.padded_to), []).append(each)
    return [_padded_line(*widths, padded) for widths, padded in sorted(found.items())]


def _padded_line(width: int, padded_to: int, padded: Sequence[PaddedLayer]) -> str:
    linears = list(dict.fromkeys(each.linear for each in padded))
    where = sorted({f"{each.granularity} on w{each.weight_dtype}" for each in padded})
    return (
        f"{width} wide, padded to {padded_to}: {counted(len(linears), 'linear')}, such as "
        f"{linears[0]}; {', '.join(where)}"
    )


def _table(cells: Sequence[CombinationSupport]) -> str:
    columns = dict.fromkeys(cell.combination.granularity.name for cell in cells)
    rows: dict[str, list[str]] = {}
    for cell in cells:
        pair = cell.combination.pair
        name = f"{pair.name} *" if pair.experimental else pair.name
        rows.setdefault(name, [name]).append(_mark(cell))
    headers = ["pair (* experimental)", *columns]
    return tabulate(list(rows.values()), headers=headers, tablefmt="simple")


def _mark(cell: CombinationSupport) -> str:
    return "=" if cell.alias_of is not None else _SHORT[cell.support.status]


def _reasons(cells: Sequence[CombinationSupport]) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for cell in cells:
        if not cell.support.is_supported:
            reasons.setdefault(cell.support.skip_reason, []).append(cell.combination.test_id)
    return [f"{reason}\n    {_first_few(ids)}" for reason, ids in reasons.items()]


def _aliases(cells: Sequence[CombinationSupport]) -> list[str]:
    aliases: dict[str, list[str]] = {}
    for cell in cells:
        if cell.alias_of is not None:
            aliases.setdefault(cell.alias_of.test_id, []).append(cell.combination.test_id)
    return [f"{original} = {', '.join(ids)}" for original, ids in aliases.items()]


def _first_few(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return ", ".join(ids[:_NAMED]) + more
