"""Pages of folders that hold less, or something else, than a report should."""

import json
from dataclasses import replace

import pytest
from page_reading import SECTIONS, cells, column, go, open_case, table, whole_table
from pytest_autoquant.manifests.outcomes import SkippedCase
from pytest_autoquant.manifests.sensitivity_manifest import MANIFEST_SUFFIX, dump_manifest
from pytest_autoquant.reports.rebuild import rebuild

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
    """A manifest of the shape that they had before the harness: no version, no digests."""
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
    """Show every section: the page itself complains where one cannot be drawn."""
    for section in SECTIONS:
        go(page, f"#{section}")
        assert page.locator(f"#section-{section} h2").is_visible()


def test_a_folder_without_manifests_says_so(page, report_of, open_report):
    open_report(page, report_of())
    assert left_out(page) == [f"no *{MANIFEST_SUFFIX} is here; run some cases first"]
    assert "0 measured" in page.inner_text("#counts")
    walk(page)
    for section, chart in {"grid": "grid", "case": "layers", "frontier": "frontier"}.items():
        go(page, f"#{section}")
        assert page.inner_text(f"#chart-{chart}") == "Nothing was measured for this."


def test_the_controls_of_an_empty_page_do_no_harm(page, report_of, open_report):
    open_report(page, report_of())
    page.click("#theme")
    go(page, "#groups")
    page.select_option("#rows", label="all groups")
    page.wait_for_timeout(100)
    go(page, "#compare")
    assert page.inner_text("#correlation") == ""


def test_what_cannot_be_read_is_named_and_the_rest_shown(
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
    assert [reason.split("/")[0] for reason in reasons] == [
        "half",
        "newer",
        "other",
        f"{template.model.name}",
    ]
    assert "is not JSON" in reasons[0]
    assert "written by a newer version: schema 99" in reasons[1]
    assert "upgrade pytest-autoquant" in reasons[1]
    assert "has no schema_version" in reasons[2]
    assert "is the same case as again/" in reasons[3]
    assert [cell["label"].split(":")[0] for cell in cells(page, "grid")] == [
        f"{template.case.pair}, {template.case.granularity}"
    ]


def test_a_manifest_from_before_the_harness_shows_unknown(page, open_report, tmp_path):
    folder = tmp_path / "w_group64" / "medium"
    folder.mkdir(parents=True)
    name = f"wint4_aint8{MANIFEST_SUFFIX}"
    (folder / name).write_text(json.dumps(old_manifest()))
    assert rebuild(tmp_path).left_out == []
    open_report(page, tmp_path / "index.html")
    walk(page)
    open_case(page, "some-model-4b/wint4_aint8/w_group64/medium/gradient")
    rows = table(page, "layer-groups")
    expected = sorted(OLD_SCORES, key=OLD_SCORES.get, reverse=True)
    assert column(rows, "group") == expected
    assert column(rows, "score (in an unknown unit)") == ["5", "3", "0.25"]
    assert column(rows, "share of total (%)") == ["60.6%", "36.4%", "3.0%"]
    assert column(rows, "weights (count)") == ["65,536"] * 3
    assert column(rows, "linears") == ["unknown"] * 3
    assert column(rows, "under the bit budget") == ["unknown"] * 3
    assert "its scores do not" in page.inner_text("#case-notes")
    assert "8.25 in an unknown unit" in page.inner_text("#case-facts")
    (link,) = page.locator("#case-facts a").all()
    assert link.get_attribute("href") == f"w_group64/medium/{name}"
    go(page, "#origin")
    origin = page.inner_text("#section-origin")
    assert "device\nunknown\n" in origin
    assert "command\nunknown" in origin
    assert "/somewhere" not in page.content()


def test_old_scores_stay_off_the_frontier(page, template, report_of, open_report, tmp_path):
    put(tmp_path, "old", json.dumps(old_manifest()))
    open_report(page, report_of(template))
    go(page, "#cases")
    remarks = column(whole_table(page, "cases"), "remark")
    assert sum("unknown unit" in remark for remark in remarks) == 1
    go(page, "#frontier")
    shown = [row[0] for row in table(page, "frontier")[1:]]
    assert "some-model-4b" not in "".join(shown)


def test_two_models_each_have_a_grid_of_their_own(page, template, report_of, open_report):
    other = replace(
        template,
        model=replace(template.model, name="other"),
        case=replace(
            template.case,
            case_id=template.case.case_id.replace(template.model.name, "other"),
        ),
    )
    open_report(page, report_of(template, other))
    size = template.case.size
    options = page.locator("#view option").all_inner_texts()
    assert sorted(options) == sorted(f"{size}, {m}" for m in (template.model.name, "other"))


@pytest.mark.parametrize("status", ["needs-cuda", "unsupported"])
def test_a_report_of_skips_alone_shows_them_without_complaint(page, report_of, open_report, status):
    case_id = "model/wnvfp4_afp16/default/small/gradient"
    skip = SkippedCase(case_id=case_id, status=status, reason="it says why")
    open_report(page, report_of(skips={case_id: skip}))
    (cell,) = cells(page, "grid")
    assert cell["label"] == f"wnvfp4_afp16, default: skipped, {status}: it says why"
    walk(page)


def test_a_size_of_skips_alone_beside_a_measured_one_draws_without_complaint(
    page, template, report_of, open_report
):
    case_id = f"{template.model.name}/wnvfp4_afp16/default/large/gradient"
    skip = SkippedCase(case_id=case_id, status="needs-cuda", reason="no GPU")
    open_report(page, report_of(template, skips={case_id: skip}))
    assert page.locator("#view option:checked").inner_text() == template.case.size
    page.select_option("#view", label="large")
    page.wait_for_timeout(150)
    (cell,) = cells(page, "grid")
    assert "skipped, needs-cuda: no GPU" in cell["label"]
