"""The page: everything in it, nothing loaded by it, and no text that becomes markup."""

import json
import math
import re
from base64 import b64encode
from dataclasses import fields, replace
from hashlib import sha256

import pytest
from builders import HtmlPage, results_of, structure_check
from fuzz import HOSTILE_TEXTS
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest_autoquant.manifests.case_result import case_result_of
from pytest_autoquant.manifests.records.outcomes import FailedCase, SkippedCase
from pytest_autoquant.manifests.records.sensitivity_manifest import dump_manifest
from pytest_autoquant.reports.charts.static_svg import CHARTS, specification
from pytest_autoquant.reports.page.contents import contents
from pytest_autoquant.reports.page.render import render_page
from pytest_autoquant.reports.report_model import report_model
from pytest_autoquant.reports.run_comparison import compare_runs, two_runs
from pytest_autoquant.reports.write import write_case, write_comparison

LAYER = "model.language_model.layers.0"
HOSTILE = (
    *(text for text in HOSTILE_TEXTS if text.isprintable() and text.strip() == text),
    "</style><style>*{display:none}",
    "' onclick='alert(1)' x='",
    "</select></textarea></title><svg onload=x>",
    "{{ 7 * 7 }}{% raw %}",
    "\\u003c/script\\u003e",
    "é模\U0001f600",
    "%00%3Cscript%3E",
)


def render(results, comparison=None):
    return render_page(report_model(results), comparison)


def page_of(results, comparison=None):
    return HtmlPage(render(results, comparison))


def contents_of(*lines):
    return contents(report_model(results_of(*lines)))


def everything(case_of, text):
    """A session with one of everything, all of whose free text is ``text``."""
    origin = {"label": "value", text: text}
    no_case, below = text.replace("/", ""), text.encode(errors="ignore").decode()
    groups = {f"m.layers.0.{text}": 2.0, f"m.layers.1.{text}": 1.0, f"{text}.head": None}
    free = {"granularity": text, "format_name": text, "origin": origin, "notes": (text,)}
    free |= {"quantizers": {text: text}, "manifest": f"{below}/x.json", "model": text}
    first = case_of(groups, pair=f"{text}1", total_score=3.0, **free)
    results = results_of(
        first,
        case_of(groups, pair=f"{text}1", size="large", total_score=3.0, **free),
        case_of(groups, pair=f"{text}2", status="alias", alias_of=text, **free),
        case_of(groups, pair=f"{text}3", status="failed", problems=(text, text), **free),
        case_of(groups, pair=f"{text}4", fingerprint=None, **free),
        case_of(groups, pair=text, method="kl_div", experimental=True, **free),
        SkippedCase(case_id=no_case, status=text, reason=text),
        SkippedCase(case_id=f"{text}/p/g/small/gradient", status=text, reason=text),
        FailedCase(case_id=f"{no_case}!", problem=text),
        structure_check(text, text, text, reason=text, format_name=text, digest=text),
        gated={first.case_id: text},
        lost=(f"{no_case}?",),
        left_out=[text],
        write_errors=[text],
        command=text,
        shard=text,
    )
    results.sort()
    return results


@pytest.fixture
def results(case_of):
    """Two pairs at two sizes, an alias, a failed case and a skip."""
    scores = {f"{LAYER}.mlp.up_proj": 3.0, f"{LAYER}.mlp.down_proj": 1.0, "lm_head": 0.5}
    swapped = dict(zip(scores, reversed(scores.values()), strict=True))
    results = results_of(
        case_of(scores, effective_bits=4.125),
        case_of(swapped, size="medium"),
        case_of(scores, pair="wint8_aint8", effective_bits=8.0),
        case_of(scores, granularity="w_group64", status="alias", alias_of="toy/other"),
        case_of({"lm_head": None}, pair="wfp8_afp8", status="failed", problems=("NaN",)),
        SkippedCase(
            case_id="toy/wfp4_afp8/default/small/gradient", status="needs-cuda", reason="no CUDA"
        ),
        command="pytest --aq-pairs all",
    )
    results.sort()
    return results


def plain(value):
    return json.loads(
        json.dumps(value, default=lambda v: {f.name: getattr(v, f.name) for f in fields(v)})
    )


def test_page_data_equals_the_contents(results):
    shown = contents(report_model(results))
    data = page_of(results).data
    assert set(data) == {field.name for field in fields(shown)} | {"charts"}
    assert {name: data[name] for name in data if name != "charts"} == plain(shown)
    assert data["charts"] == {name: specification(name) for name in CHARTS}


def test_page_opens_with_the_last_measured_view_and_its_first_scored_case(results):
    results.add(SkippedCase(case_id="toy/p/g/large/gradient", status="needs-cuda", reason="r"))
    model = report_model(results)
    shown = contents(model)
    assert [(v.cells, v.frontier, v.groups) for v in shown.views] == [
        (v.cells, v.frontier, v.groups) for v in model.views
    ]
    assert shown.stability == model.stability
    assert [view.size for view in shown.views] == ["small", "medium", "large"]
    assert shown.first_view == 1
    assert [view.first_case for view in shown.views] == [
        "toy/wint8_aint8/default/small/gradient",
        "toy/wint4_aint8/default/medium/gradient",
        None,
    ]


def test_cases_with_the_same_groups_and_scores_share_them(results):
    shown = contents(report_model(results))
    assert (len(shown.cases), len(shown.group_sets), len(shown.score_sets)) == (5, 2, 3)
    (groups,) = [found for found in shown.group_sets if len(found.names) == 3]
    assert [(p.row, p.column, p.layer, p.projection) for p in groups.places] == [
        (0, 0, "0", "mlp.up_proj"),
        (1, 0, "0", "mlp.down_proj"),
        (2, -1, "-", "lm_head"),
    ]
    assert (groups.weights, groups.weights_shown, groups.linears) == (
        (8,) * 3,
        ("8",) * 3,
        (1,) * 3,
    )


def test_models_of_equal_names_have_group_sets_of_their_own(case_of):
    narrow, wide, other = (case_of({"a": 1.0}, model=m) for m in ("narrow", "wide", "other"))
    wide = replace(wide, groups=(replace(wide.groups[0], weights=1024),))
    shown = contents_of(narrow, wide, other, replace(wide, case_id="twice"))
    sets = [shown.group_sets[entry.groups] for entry in shown.cases]
    assert [(found.model, found.weights) for found in sets] == [
        ("narrow", (8,)),
        ("wide", (1024,)),
        ("other", (8,)),
        ("wide", (1024,)),
    ]
    assert len(shown.group_sets) == 3


def test_case_entry_carries_the_cases_own_facts(manifest):
    (entry,) = contents_of(case_result_of(manifest)).cases
    assert (entry.id, entry.status) == (manifest.case.case_id, "measured")
    assert (entry.experimental, entry.format) == (True, "INT4_WEIGHT_INT8_ACT_CFG")
    assert (entry.bits, entry.total, entry.total_shown) == ("4.125", 10.0, "10")
    assert entry.selected == "011"
    assert entry.links == {
        "manifest": manifest.path.as_posix(),
        "layer report": (manifest.path.parent / "layer-sensitivity-report.md").as_posix(),
    }


def test_scores_keep_seven_digits_and_their_exact_order(case_of):
    scores = {"a": 1.00000001e-7, "b": 1.00000002e-7, "c": None, "d": 0.0}
    (found,) = contents_of(case_of(scores)).score_sets
    assert found.scores == (1e-7, 1e-7, None, 0.0)
    assert found.shown == "1e-07 1e-07 n/a 0"
    assert found.shares == "n/a n/a n/a n/a"
    assert found.order == (2, 1, 0, 3)


@pytest.mark.parametrize(
    ("selected", "shown"), [((True, False), "10"), ((None, None), ""), ((True, None), "")]
)
def test_selection_is_empty_if_it_is_unknown_for_any_group(case_of, selected, shown):
    case = case_of({"a": 2.0, "b": 1.0})
    groups = tuple(replace(g, selected=s) for g, s in zip(case.groups, selected, strict=True))
    (entry,) = contents_of(replace(case, groups=groups)).cases
    assert entry.selected == shown


@pytest.mark.parametrize("folder", ["a b", "javascript:x", "data:,x", "100%", "x#y?z", "caf\udce9"])
def test_links_stay_below_the_page(case_of, folder):
    (entry,) = contents_of(case_of(manifest=f"{folder}/x.json")).cases
    (old,) = contents_of(case_of(manifest=f"{folder}/x.json", fingerprint=None)).cases
    assert old.links == {"manifest": entry.links["manifest"]}
    for link in entry.links.values():
        assert not re.match(r"[a-z]+:|/", link, re.IGNORECASE)
        assert not set(link) & set(" #?\"'<>")


def test_tables_hold_every_case_and_skip_without_scripts(results):
    page = page_of(results)
    header, *rows = page.table("cases")
    assert len(rows) == 6
    assert {len(row) for row in rows} == {len(header)}
    column = {name: place for place, name in enumerate(header)}
    shown = {(row[column["pair"]], row[column["size"]], row[column["status"]]) for row in rows}
    assert shown == {
        ("wint4_aint8", "small", "measured"),
        ("wint4_aint8", "medium", "measured"),
        ("wint8_aint8", "small", "measured"),
        ("wint4_aint8", "small", "alias"),
        ("wfp8_afp8", "small", "failed"),
        ("wfp4_afp8", "small", "needs-cuda"),
    }
    totals = {row[column["total score (per token)"]] for row in rows}
    assert totals == {"4.5", "n/a"}
    assert {row[column["remark"]] for row in rows} == {"", "alias of toy/other", "NaN", "no CUDA"}
    assert page.table("size-stability")[1:] == [
        [
            "toy",
            "gradient",
            "wint4_aint8",
            "default",
            "small and medium",
            "it is unknown which captions both scored",
            "-1.0000",
        ]
    ]


def test_page_lists_failures_files_left_out_and_the_command(results):
    results.left_out.append("a/x.json: is not JSON")
    page = page_of(results)
    left_out, failed = [text for a, text in page.all("section") if a.get("class") == "notice"]
    assert "is not JSON" in left_out
    assert "wfp8_afp8" in failed
    assert "pytest --aq-pairs all" in page.text_of(id="section-origin")
    assert page.text_of(id="counts").startswith("3 measured, 1 alias, 1 failed, 1 skipped")


def test_session_without_a_score_has_a_page(case_of):
    page = page_of(results_of(left_out=["no manifest is here"]))
    assert "no manifest is here" in [text for _, text in page.all("li")]
    assert page.data["cases"] == page.data["views"] == []
    lost = page_of(results_of(lost=("toy/p/g/small/gradient",)))
    assert lost.data["views"][0]["cells"][0]["status"] == "lost"
    broken = page_of(results_of(case_of({"a": None}, effective_bits=None)))
    assert broken.data["cases"][0]["total"] is None


def test_overflowing_scores_leave_strict_json(case_of):
    cases = (
        case_of({"a": 1e308, "b": 1e308}, total_score=None),
        case_of({"a": 1.7e308, "b": 5e-324}, pair="p", total_score=1e308, effective_bits=1e300),
        case_of({"a": 1.0}, pair="q", total_score=5e-324),
    )
    sets = page_of(results_of(*cases)).data["score_sets"]
    assert [scores["scores"] for scores in sets] == [[1e308, 1e308], [1.7e308, 5e-324], [1.0]]


def policy(page):
    (content,) = [
        a["content"]
        for a, _ in page.all("meta")
        if a.get("http-equiv") == "Content-Security-Policy"
    ]
    return {name: rest for name, *rest in (part.split() for part in content.split(";"))}


def hashed(text):
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def test_policy_allows_only_the_style_and_scripts_of_the_file(results):
    page = page_of(results)
    tags = [tag for tag, _ in page.elements]
    assert tags.index("meta") < min(tags.index("style"), tags.index("script"))
    assert tags[:5] == ["html", "head", "meta", "meta", "meta"]
    allowed = policy(page)
    scripts = [text for attributes, text in page.all("script") if "type" not in attributes]
    assert len(scripts) == 2
    assert sorted(allowed["script-src"]) == sorted(map(hashed, scripts))
    assert allowed["style-src"] == [hashed(text) for _, text in page.all("style")]
    assert allowed["default-src"] == ["'none'"]
    assert allowed["base-uri"] == allowed["form-action"] == ["'none'"]
    assert allowed["img-src"] == ["data:", "blob:"]
    assert set(allowed) == {
        *("default-src", "script-src", "style-src", "img-src", "base-uri", "form-action"),
    }


def test_page_loads_and_evaluates_nothing(results):
    page = page_of(results)
    for tag, attributes in page.elements:
        assert tag not in {"link", "iframe", "object", "embed", "base", "img", "form"}
        assert not {"src", "srcset", "action", "style"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]
        assert attributes.get("href", "#").startswith("#")
    (style,) = [text for _, text in page.all("style")]
    assert "@import" not in style
    assert not re.search(r"url\(\s*['\"]?(?!data:|#)", style)
    *_, script = [text for _, text in page.all("script")]
    assert not re.search(r"eval\(|new Function|fetch\(|XMLHttpRequest|import\(", script)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write", script)


def test_ids_are_unique_and_labels_refer_to_them(results):
    elements = [attributes for _, attributes in page_of(results).elements]
    ids = [attributes["id"] for attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["aria-labelledby"] for a in elements if "aria-labelledby" in a} <= set(ids)


@pytest.fixture(scope="module")
def harmless(case_of):
    """The page of a session whose every free text is ``plain``."""
    return page_of(everything(case_of, "plain"))


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:14]))
def test_hostile_text_makes_no_markup_and_is_shown(case_of, harmless, text):
    results = everything(case_of, text)
    page = page_of(results)
    assert page.structure == harmless.structure
    assert sum(body.count(text) for tag, body in page.all("td")) >= 10
    assert text in [body for _, body in page.all("dd")]
    assert text in page.text_of(id="section-origin")
    assert {case["id"] for case in page.data["cases"]} == set(results.cases)
    assert {case["model"] for case in page.data["cases"]} == {text}
    assert f"{text}.head" in page.data["group_sets"][0]["names"]
    for attributes, _ in page.all("a"):
        assert re.fullmatch(r"#[\w=%./&:~-]+", attributes["href"])


@settings(deadline=None, max_examples=15)
@given(text=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20))
def test_any_text_makes_no_element_and_no_attribute(case_of, harmless, text):
    page = page_of(everything(case_of, text))
    assert page.structure == harmless.structure
    assert {case["model"] for case in page.data["cases"]} == {text}


@pytest.mark.parametrize("text", ["\x00", "\x1b[2J", "\ud800", "caf\udce9", "a\r\nb"], ids=ascii)
def test_text_outside_html_is_replaced(case_of, harmless, text):
    html = render(everything(case_of, text)).encode(errors="backslashreplace").decode()
    page = HtmlPage(html)
    assert page.structure == harmless.structure
    assert len(page.data["cases"]) == len(harmless.data["cases"])


def test_page_of_two_runs_compares_case_by_case(tmp_path, manifest, scored):
    for folder, score in (("before", 4.0), ("after", 5.0)):
        write_case(tmp_path / folder, scored({"a": score, "b": 1.0}))
    found = compare_runs(tmp_path / "before", tmp_path / "after")
    write_comparison(tmp_path / "compare.html", found)
    page = HtmlPage((tmp_path / "compare.html").read_text())
    header, row = page.table("runs")
    assert dict(zip(header, row, strict=True)) == {
        "case": manifest.case.case_id,
        "total score drift (%)": "+20.000",
        "Spearman rank correlation": "1.0000",
        "top ten kept (%)": "100",
        "largest group drift (%)": "25.000",
        "groups selected otherwise": "0",
        "measured on something else": "",
    }
    assert {case["id"] for case in page.data["cases"]} == {
        f"A: {manifest.case.case_id}",
        f"B: {manifest.case.case_id}",
    }
    for entry in page.data["cases"]:
        assert (tmp_path / entry["links"]["manifest"]).is_file()


def test_infinite_drift_leaves_strict_json(tmp_path, scored):
    for name, score in (("one.json", 1.0), ("two.json", math.inf)):
        (tmp_path / name).write_text(dump_manifest(scored({"a": score, "b": 2.0})))
    found = compare_runs(tmp_path / "one.json", tmp_path / "two.json")
    page = page_of(two_runs(found, tmp_path), found)
    assert page.table("runs")[1][4] == "inf"
    assert len(page.data["cases"]) == 2
