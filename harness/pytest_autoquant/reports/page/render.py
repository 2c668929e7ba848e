"""Put the page together: one file that loads nothing and runs only its own two scripts."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pytest_autoquant.calibration.sizes import size_order
from pytest_autoquant.grid.case import CaseId
from pytest_autoquant.reports.charts.static_svg import CHARTS, specification
from pytest_autoquant.reports.markdown import (
    GROUPS_MEAN,
    KL_SCORE_MEANS,
    SCORE_MEANS,
    bits,
    number,
    percent,
)
from pytest_autoquant.reports.page.contents import contents
from pytest_autoquant.reports.run_comparison import RunComparison
from pytest_autoquant.reports.scheme_report import HEADERS, MEANING, agreement_sentence, cells
from pytest_autoquant.reports.session_report import counts_sentence, quantized
from pytest_autoquant.reports.session_results import SessionResults, most_sensitive_groups, origin
from pytest_autoquant.text import well_formed

if TYPE_CHECKING:
    from jinja2 import Template

PAGE = "index.html"

_FARTHEST = 1e308
"""Of a drift, to sort by: a table takes infinity for a word."""

_HERE = Path(__file__).parent
_PARTS = {
    "style": _HERE / "page.css",
    "vendor": _HERE / "vendor" / "vendor.js",
    "script": _HERE / "page.js",
}
_LICENCES = _HERE / "vendor" / "LICENSES.txt"


def render_page(results: SessionResults, comparison: RunComparison | None = None) -> str:
    """Return ``index.html`` of a session, with everything it needs in it.

    Args:
        comparison: of the two runs that ``results`` holds, where it holds two.
    """
    shown = contents(results)
    document = {**_fields(shown), "charts": {name: specification(name) for name in CHARTS}}
    drawn = _template().render(
        results=results,
        schemes=[cells(found) for found in results.schemes.values()],
        scheme_headers=HEADERS,
        schemes_meaning=MEANING,
        agreement=agreement_sentence(results.schemes),
        counts=counts_sentence(results),
        views=shown.views,
        many={
            "models": len({view.model for view in shown.views}) > 1,
            "methods": len({view.method for view in shown.views}) > 1,
        },
        comparison=comparison,
        data=document,
        origin=origin(results),
        sensitive=most_sensitive_groups(results.cases.values()),
        score_means=SCORE_MEANS,
        kl_score_means=KL_SCORE_MEANS if _uses_kl(results) else "",
        groups_mean=GROUPS_MEAN,
        parts={name: path.read_text(encoding="utf-8") for name, path in _PARTS.items()},
        hashes=_hashes(),
        licences=_LICENCES.read_text(encoding="utf-8"),
    )
    return well_formed(drawn)


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_function"] = _dumps
    environment.filters |= {
        "number": number,
        "percent": percent,
        "bits": bits,
        "quantized": quantized,
        "address": lambda text: quote(well_formed(text), safe=""),
        "case_name": CaseId.parse,
        "size_place": lambda size: size_order(size)[0],
        "finite": lambda drift: max(-_FARTHEST, min(drift, _FARTHEST)),
        "order": lambda value: -1 if value is None else value,
    }
    return environment.get_template("index.html.j2")


@cache
def _hashes() -> Mapping[str, str]:
    """Return what the content security policy calls the style and the scripts."""
    return {
        name: f"'sha256-{b64encode(sha256(path.read_bytes()).digest()).decode()}'"
        for name, path in _PARTS.items()
    }


def _dumps(value: object, **_: Any) -> str:
    return json.dumps(value, default=_fields, separators=(",", ":"), allow_nan=False)


def _fields(value: object) -> dict[str, Any]:
    """Take a dataclass apart one level; ``asdict`` would copy every score."""
    if not is_dataclass(value) or isinstance(value, type):
        raise TypeError(f"{type(value).__name__} is no data of the page")
    return {item.name: getattr(value, item.name) for item in fields(value)}


def _uses_kl(results: SessionResults) -> bool:
    return any(case.method == "kl_div" for case in results.cases.values())
