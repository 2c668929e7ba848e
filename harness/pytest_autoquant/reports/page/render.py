"""``index.html``: one file that loads nothing and runs only its own two scripts."""

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
from pytest_autoquant.grid.case import CaseId, is_scheme_id
from pytest_autoquant.manifests.records.outcomes import StructureCheck
from pytest_autoquant.manifests.records.scheme_manifest import SchemeManifest
from pytest_autoquant.reports.charts.static_svg import CHARTS, specification
from pytest_autoquant.reports.markdown.comparison_report import kl_drift_shown, score_drift_shown
from pytest_autoquant.reports.markdown.elements import (
    ALIGNED_MEANS,
    GROUPS_MEAN,
    LOST_MEANS,
    SHARES_MEAN,
    STABILITY_MEANS,
    WHOLE_MEANS,
    bits,
    correlation,
    number,
    percent,
    whole_kl_shown,
)
from pytest_autoquant.reports.markdown.scheme.damage import (
    SEARCH_HEADERS,
    damage_sentences,
    search_rows,
)
from pytest_autoquant.reports.markdown.scheme.decisions import (
    DECISION_HEADERS,
    decisions,
    rule_sentence,
)
from pytest_autoquant.reports.markdown.scheme.report import HEADERS, MEANING, cells
from pytest_autoquant.reports.markdown.session.case_table import (
    has_active_bits,
    infeasible_note,
    quantized,
)
from pytest_autoquant.reports.markdown.session.sentences import (
    counts_sentence,
    last_run_sentences,
    problem_of,
    run_of,
)
from pytest_autoquant.reports.markdown.session.timing import (
    TIMING_MEANS,
    timing_headers,
    timing_rows,
)
from pytest_autoquant.reports.page.contents import contents
from pytest_autoquant.reports.report_model import ReportModel
from pytest_autoquant.reports.run_comparison import RunComparison
from pytest_autoquant.reports.session_results import SessionResults
from pytest_autoquant.text import counted, well_formed

if TYPE_CHECKING:
    from jinja2 import Template

PAGE = "index.html"

#: Sort key of an infinite drift: DataTables sorts infinity as text.
_LARGEST_DRIFT = 1e308

_HERE = Path(__file__).parent
_PARTS = {
    "style": _HERE / "page.css",
    "vendor": _HERE / "vendor" / "vendor.js",
    "script": _HERE / "page.js",
}
_LICENCES = _HERE / "vendor" / "LICENSES.txt"


def render_page(model: ReportModel, comparison: RunComparison | None = None) -> str:
    """Return ``index.html`` of a session or a folder, with everything it needs in it.

    Args:
        comparison: of the two runs in ``model``, if it holds two.
    """
    results, shown = model.results, contents(model)
    has_kl = any(case.whole is not None for case in results.cases.values())
    drawn = _template().render(
        model=model,
        results=results,
        schemes=[(found, cells(found)) for found in results.schemes.values()],
        decisions=[(found, decisions(found)) for found in results.schemes.values()],
        decision_headers=DECISION_HEADERS,
        damages=[
            (found, sentences)
            for found in results.schemes.values()
            if (sentences := damage_sentences(found))
        ],
        searches=[
            (found, list(search_rows(found.search)))
            for found in results.schemes.values()
            if found.search is not None
        ],
        search_headers=SEARCH_HEADERS,
        unfinished_schemes=results.unfinished_schemes,
        scheme_headers=HEADERS,
        schemes_meaning=MEANING,
        counts=counts_sentence(results),
        last_run=last_run_sentences(results),
        timing=() if results.last_run is None else results.last_run.timing,
        timing_headers=timing_headers,
        timing_rows=timing_rows,
        timing_means=TIMING_MEANS,
        marks_runs=not results.is_from_one_run,
        many={
            "models": len({view.model for view in shown.views}) > 1,
            "scheme_models": len({_place(found) for found in results.schemes.values()}) > 1,
            "whole": has_kl,
            "active": has_active_bits(results.cases.values()),
            "methods": len({view.method for view in shown.views}) > 1,
        },
        comparison=comparison,
        page=shown,
        data={**_fields(shown), "charts": {name: specification(name) for name in CHARTS}},
        lost_means=LOST_MEANS,
        infeasible_means=infeasible_note(results.cases.values()),
        groups_mean=GROUPS_MEAN,
        shares_mean=SHARES_MEAN,
        stability_means=STABILITY_MEANS,
        whole_means=WHOLE_MEANS if has_kl else "",
        aligned_means=ALIGNED_MEANS,
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
        "correlation": correlation,
        "score_drift": lambda found, drift: score_drift_shown(found, drift).removesuffix("%"),
        "quantized": quantized,
        "whole_kl": whole_kl_shown,
        "kl_drift": kl_drift_shown,
        "counted": counted,
        "address": lambda text: quote(well_formed(text), safe=""),
        "case_name": CaseId.parse,
        "is_scheme_id": is_scheme_id,
        "problem": problem_of,
        "rule": rule_sentence,
        "run_of": run_of,
        "run_of_check": _run_of_check,
        "size_place": lambda size: size_order(size)[0],
        "finite": lambda drift: max(-_LARGEST_DRIFT, min(drift, _LARGEST_DRIFT)),
        "order": lambda value: -1 if value is None else value,
    }
    return environment.get_template("index.html.j2")


@cache
def _hashes() -> Mapping[str, str]:
    """Return the hashes by which the content security policy allows the style and the scripts."""
    return {
        name: f"'sha256-{b64encode(sha256(path.read_bytes()).digest()).decode()}'"
        for name, path in _PARTS.items()
    }


def _dumps(value: object, **_: Any) -> str:
    return json.dumps(value, default=_fields, separators=(",", ":"), allow_nan=False)


def _fields(value: object) -> dict[str, Any]:
    """Return the fields of a dataclass, one level deep; ``asdict`` would copy every score."""
    if not is_dataclass(value) or isinstance(value, type):
        raise TypeError(f"{type(value).__name__} cannot be written to the page's data")
    return {item.name: getattr(value, item.name) for item in fields(value)}


def _run_of_check(results: SessionResults, check: StructureCheck) -> str:
    last = results.last_run
    is_last = last is None or (check.pair, check.granularity) in last.structure
    return "last" if is_last else "earlier"


def _place(found: SchemeManifest) -> tuple[str, str]:
    return found.model.name, found.dataset.size
