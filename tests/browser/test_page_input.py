"""Pages of a folder without manifests, of skips alone, and of an old manifest."""

import json

import pytest
from page_reading import SECTIONS, cells, column, go, open_case, table, whole_table
from pytest_autoquant.manifests.layout import MANIFEST_SUFFIX
from pytest_autoquant.manifests.records.outcomes import SkippedCase

OLD_SCORES = {
    "model.language_model.layers.0.self_attn.q_proj": 3.0,
    "model.language_model.layers.0.mlp.down_proj": 5.0,
    "model.language_model.layers.1.self_attn.q_proj": 0.25,
}


def old_manifest():
    """A manifest from before the harness: no schema version, no digests."""
    ordered = sorted(OLD_SCORES, key=OLD_SCORES.get)
    groups = {
        f"{name}.quant_recipe": {
            "formats": ["INT4_INT8(effective-bits: 4.0)", "NONE(effective-bits: 16.0)"],
            "scores": [score, 0.0],
            "costs": [16384.0, 65536.0],
            "importance": score,
            "rank": ordered.index(name) + 1,
        }
        for name, score in OLD_SCORES.items()
    }
    return {
        "scheme": {
            "name": "wint4_aint8_autoquant_lm",
            "auto_quantize_bits": 8.5,
            "auto_quantize_method": "gradient",
        },
        "model": {"id": "/somewhere/models/Some-Model-4B"},
        "num_quantized_layers": 3,
        "autoquant_state": {"constraints": {"effective_bits": 8.5}, "score": 1.5},
        "layer_sensitivity": groups,
        "dataset": {"name": "captions", "size": "medium", "num_calib_samples": 128},
    }


def left_out(page):
    return page.locator("#left-out + ul li").all_inner_texts()


def walk(page):
    """Show every section; the page fails the test if one cannot be drawn."""
    for section in SECTIONS:
        go(page, f"#{section}")
        assert page.locator(f"#section-{section} h2").is_visible()


@pytest.mark.slow
def test_report_of_skips_alone_is_drawn(page, report_of, open_report):
    case_id = "model/wnvfp4_afp16/default/small/gradient"
    skip = SkippedCase(case_id=case_id, status="needs-cuda", reason="why")
    open_report(page, report_of(skips={case_id: skip}))
    (cell,) = cells(page, "grid")
    assert cell["label"] == "wnvfp4_afp16, default: skipped, needs-cuda: why"
    walk(page)


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
