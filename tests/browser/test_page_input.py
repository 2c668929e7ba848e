"""Pages of folders that are empty, incomplete, partly unreadable, or from several runs."""

import json
from dataclasses import replace

import pytest
from page_reading import SECTIONS, cells, column, go, open_case, table, whole_table
from pytest_autoquant.manifests.layout import MANIFEST_SUFFIX
from pytest_autoquant.manifests.outcomes import FailedCase, SkippedCase
from pytest_autoquant.manifests.sensitivity_manifest import dump_manifest
from pytest_autoquant.reports.rebuild import rebuild
from pytest_autoquant.reports.session_results import SessionResults
from pytest_autoquant.reports.write import write_summary

SIGNED = "NONE(effective-bits: 16.0)"
OLD_SCORES = {
    "model.language_model.layers.0.self_attn.q_proj": 3.0,
    "model.language_model.layers.0.mlp.down_proj": 5.0,
    "model.language_model.layers.1.self_attn.q_proj": 0.25,
}


def old_group(score, rank):
    return {
        "formats": ["INT4_INT8(effective-bits: 4.0)", SIGNED],
        "scores": [score, 0.0],
        "costs": [16384.0, 65536.0],
        "importance": score,
        "rank": rank,
    }


def old_manifest():
    """A manifest from before the harness: no schema version, no digests."""
    searched = {f"{name}.quant_recipe": score for name, score in OLD_SCORES.items()}
    ordered = sorted(searched, key=searched.get)
    groups = {name: old_group(score, ordered.index(name) + 2) for name, score in searched.items()}
    untouched = {"formats": [SIGNED], "scores": [0.0], "costs": [1.0], "importance": 0.0, "rank": 1}
    return {
        "scheme": {
            "name": "wint4_aint8_autoquant_lm",
            "auto_quantize_bits": 8.5,
            "auto_quantize_method": "gradient",
        },
        "model": {"id": "/somewhere/models/Some-Model-4B"},
        "num_quantized_layers": 3,
        "autoquant_state": {"constraints": {"effective_bits": 8.5}, "score": 1.5},
        "layer_sensitivity": {"model.visual.patch_embed.proj.quant_recipe": untouched, **groups},
        "dataset": {"name": "captions", "size": "medium", "num_calib_samples": 128},
    }


def put(root, name, text):
    folder = root / name
    folder.mkdir()
    (folder / f"{name}{MANIFEST_SUFFIX}").write_text(text)


def left_out(page):
    return page.locator("#left-out + ul li").all_inner_texts()


def walk(page):
    """Show every section; the page fails the test if one cannot be drawn."""
    for section in SECTIONS:
        go(page, f"#{section}")
        assert page.locator(f"#section-{section} h2").is_visible()


def test_folder_without_manifests_has_a_page_whose_controls_work(page, report_of, open_report):
    open_report(page, report_of())
    assert left_out(page) == [f"no *{MANIFEST_SUFFIX} is here; run some cases first"]
    assert "0 measured" in page.inner_text("#counts")
    walk(page)
    for section, chart in {"grid": "grid", "case": "layers", "frontier": "frontier"}.items():
        go(page, f"#{section}")
        assert page.inner_text(f"#chart-{chart}") == "Nothing was measured for this."
    page.click("#theme")
    go(page, "#groups")
    page.select_option("#rows", label="all groups")
    go(page, "#compare")
    assert page.inner_text("#correlation") == ""


@pytest.mark.slow
def test_unreadable_manifests_are_named_and_the_others_shown(
    page, template, report_of, open_report, tmp_path
):
    report_of(template)
    whole = dump_manifest(template)
    put(tmp_path, "half", whole[: len(whole) // 2])
    put(tmp_path, "newer", whole.replace('"schema_version": 1', '"schema_version": 99'))
    put(tmp_path, "other", "[1, 2]")
    put(tmp_path, "again", whole)
    rebuild(tmp_path)
    open_report(page, tmp_path / "index.html")
    reasons = left_out(page)
    folders = [reason.split("/")[0] for reason in reasons]
    assert folders == ["half", "newer", "other", template.model.name]
    assert "is not JSON" in reasons[0]
    assert "a newer version: schema 99" in reasons[1]
    assert "upgrade pytest-autoquant" in reasons[1]
    assert "has no schema_version" in reasons[2]
    assert "is the same case as again/" in reasons[3]
    assert [cell["label"].split(":")[0] for cell in cells(page, "grid")] == [
        f"{template.case.pair}, {template.case.granularity}"
    ]


def test_manifest_from_before_the_harness_shows_unknown_fields(
    page, template, report_of, open_report, tmp_path
):
    folder = tmp_path / "w_group64" / "medium"
    folder.mkdir(parents=True)
    name = f"wint4_aint8{MANIFEST_SUFFIX}"
    (folder / name).write_text(json.dumps(old_manifest()))
    open_report(page, report_of(template))
    assert left_out(page) == []
    walk(page)
    open_case(page, "some-model-4b/wint4_aint8/w_group64/medium/gradient")
    rows = table(page, "layer-groups")
    assert column(rows, "group") == sorted(OLD_SCORES, key=OLD_SCORES.get, reverse=True)
    for title, expected in {
        "score (in an unknown unit)": ["5", "3", "0.25"],
        "share of total (%)": ["60.6%", "36.4%", "3.0%"],
        "weights (count)": ["65,536"] * 3,
        "linears": ["unknown"] * 3,
        "under the bit budget": ["unknown"] * 3,
    }.items():
        assert column(rows, title) == expected
    assert "its scores do not" in page.inner_text("#case-notes")
    assert "8.25 in an unknown unit" in page.inner_text("#case-facts")
    (link,) = page.locator("#case-facts a").all()
    assert link.get_attribute("href") == f"w_group64/medium/{name}"
    go(page, "#cases")
    remarks = column(whole_table(page, "cases"), "remark")
    assert sum("unknown unit" in remark for remark in remarks) == 1
    go(page, "#frontier")
    assert "some-model-4b" not in "".join(row[0] for row in table(page, "frontier")[1:])
    go(page, "#origin")
    assert "\nunknown\n" in page.inner_text("#section-origin")
    assert "/somewhere" not in page.content()


@pytest.mark.slow
def test_every_model_has_a_grid_of_its_own(page, template, report_of, open_report):
    case_id = template.case.case_id.replace(template.model.name, "other")
    other = replace(
        template,
        model=replace(template.model, name="other"),
        case=replace(template.case, case_id=case_id),
    )
    open_report(page, report_of(template, other))
    size = template.case.size
    options = page.locator("#view option").all_inner_texts()
    assert sorted(options) == sorted(f"{size}, {m}" for m in (template.model.name, "other"))


@pytest.mark.slow
def test_report_of_skips_alone_is_drawn(page, report_of, open_report):
    case_id = "model/wnvfp4_afp16/default/small/gradient"
    skip = SkippedCase(case_id=case_id, status="needs-cuda", reason="why")
    open_report(page, report_of(skips={case_id: skip}))
    (cell,) = cells(page, "grid")
    assert cell["label"] == "wnvfp4_afp16, default: skipped, needs-cuda: why"
    walk(page)


@pytest.mark.slow
def test_outcomes_of_several_runs_are_marked(page, template, report_of, open_report, tmp_path):
    """The first run measured and skipped, the last one failed: nothing of either is hidden."""
    large = f"{template.model.name}/wnvfp4_afp16/default/large/gradient"
    skip = SkippedCase(case_id=large, status="needs-cuda", reason="no GPU")
    report_of(template, skips={large: skip})
    error = FailedCase(case_id=template.case.case_id, problem="out of memory")
    write_summary(tmp_path, SessionResults(errors={error.case_id: error}))
    open_report(page, tmp_path / "index.html")
    assert page.inner_text("#last-run") == (
        "Last run: 1 failed; all other outcomes here are from earlier runs."
    )
    assert page.inner_text("#counts").startswith("1 measured, 0 aliases, 1 failed, 1 skipped")
    (cell,) = cells(page, "grid")
    assert cell["label"].endswith("then failed: out of memory; 8 bits per weight")
    assert page.locator("#view option:checked").inner_text() == template.case.size
    page.select_option("#view", label="large")
    page.wait_for_timeout(150)
    (cell,) = cells(page, "grid")
    assert "skipped, needs-cuda: no GPU" in cell["label"]
    go(page, "#cases")
    rows = whole_table(page, "cases")
    assert dict(zip(column(rows, "size"), column(rows, "run"), strict=True)) == {
        template.case.size: "last",
        "large": "earlier",
    }
    assert column(rows, "remark") == ["then failed: out of memory", "no GPU"]
