"""Sections over several cases, compared with the manifests."""

import base64
import re
from itertools import combinations
from statistics import mean

import pytest
from builders import with_whole
from page_reading import (
    cells,
    choose_size,
    column,
    compare_cases,
    drawing,
    four,
    go,
    percent,
    scores,
    table,
    total,
    violations,
    whole_table,
)
from scipy.stats import spearmanr

FILLS = {"not beaten": "rgb(213, 94, 0)", "beaten by another case": "rgb(0, 114, 178)"}
A = "tiny-qwen3-vl/wint4_aint8/default/small/gradient"
B = "tiny-qwen3-vl/wint8_afp16/w_group64/large/gradient"


def correlation(first, second):
    names = list(first)
    found = spearmanr([first[name] for name in names], [second[name] for name in names])
    return float(found.statistic)


def ranks(manifest):
    return {name: rank for rank, name in enumerate(scores(manifest), start=1)}


def signed(number):
    return f"+{number}" if number > 0 else str(number)


def colours(page, canvas):
    """Return how many pixels of a canvas have each colour."""
    return page.evaluate(
        """selector => {
            const canvas = document.querySelector(selector);
            const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            const found = {};
            for (let i = 0; i < data.length; i += 4) {
                if (data[i + 3] !== 255) continue;
                const colour = `${data[i]},${data[i + 1]},${data[i + 2]}`;
                found[colour] = (found[colour] ?? 0) + 1;
            }
            return found;
        }""",
        canvas,
    )


def test_groups_by_case_shows_the_mean_shares_of_the_chosen_size(swept, sweep):
    go(swept, "#groups")
    for size in ("small", "large"):
        choose_size(swept, size)
        shares = {}
        for manifest in sweep.of_size(size, "measured").values():
            for name, score in scores(manifest).items():
                shares.setdefault(name, []).append(score / total(manifest))
        ordered = sorted(shares.items(), key=lambda item: -mean(item[1]))
        assert table(swept, "groups")[1:] == [
            [name, str(len(found)), *map(percent, (mean(found), min(found), max(found)))]
            for name, found in ordered
        ]


@pytest.mark.slow
def test_groups_by_case_is_drawn_on_a_canvas_in_many_colours(swept):
    go(swept, "#groups")
    found = colours(swept, "#chart-groups canvas")
    cells_of_13_pixels = {colour for colour, count in found.items() if count >= 100}
    assert len(cells_of_13_pixels) > 50
    picture = swept.evaluate("document.querySelector('#chart-groups canvas').toDataURL()")
    assert base64.b64decode(picture.partition(",")[2])[:4] == b"\x89PNG"


@pytest.mark.slow
def test_rows_selector_draws_all_groups(page, large, open_report):
    open_report(page, large, "#groups")
    height = "document.querySelector('#chart-groups canvas').getBoundingClientRect().height"
    few = page.evaluate(height)
    with drawing(page):
        page.select_option("#rows", label="all groups")
    assert page.evaluate(height) - few == pytest.approx((250 - 40) * 13, abs=30)
    assert len(whole_table(page, "groups")) == 251


@pytest.mark.slow
def test_square_gives_group_case_and_share_and_opens_the_case(swept, sweep):
    go(swept, "#groups")
    canvas = swept.locator("#chart-groups canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    places, row = {}, box["y"] + box["height"] * 0.7
    for step in range(40, 100, 4):
        place = box["x"] + box["width"] * step / 100
        swept.mouse.move(place, row)
        places.setdefault(swept.inner_text("#detail-groups"), place)
    places.pop("", None)
    expected = {
        f"{name} in {m['case']['pair']} {m['case']['granularity']}: "
        f"{percent(score / total(m))} of the total score"
        for m in sweep.of_size("large", "measured").values()
        for name, score in scores(m).items()
    }
    assert len(places) > 2
    assert places.keys() <= expected
    detail, place = places.popitem()
    _, case, _ = re.split(" in |: ", detail)
    swept.mouse.move(place, row)
    assert swept.inner_text("#detail-groups") == detail
    with drawing(swept):
        swept.mouse.click(place, row)
    chosen = swept.input_value("#case-choice")
    assert chosen == f"tiny-qwen3-vl/{case.replace(' ', '/')}/large/gradient"


@pytest.mark.slow
def test_rank_correlation_of_two_cases_is_that_of_scipy(swept, sweep):
    for a, b in combinations(list(sweep.manifests)[::9], 2):
        compare_cases(swept, a, b)
        before, after = scores(sweep.manifests[a]), scores(sweep.manifests[b])
        kept = len({*list(before)[:10]} & {*list(after)[:10]})
        assert swept.inner_text("#correlation") == (
            f"24 groups in both. Spearman rank correlation {correlation(before, after):.4f}; "
            f"{kept} of A's 10 most sensitive are among B's ten; "
            f"total score {four(total(sweep.manifests[a]))} per token "
            f"and {four(total(sweep.manifests[b]))} per token."
        )


def test_movers_and_points_are_those_of_the_two_rankings(swept, sweep):
    compare_cases(swept, A, B)
    before, after = sweep.manifests[A], sweep.manifests[B]
    rows = table(swept, "movers")
    assert len(rows) == 25
    for name, in_a, in_b, moved, score_a, score_b, ratio in rows[1:]:
        assert (int(in_a), int(in_b)) == (ranks(before)[name], ranks(after)[name])
        assert moved == signed(int(in_b) - int(in_a))
        assert (score_a, score_b) == (four(scores(before)[name]), four(scores(after)[name]))
        assert float(ratio) == pytest.approx(scores(after)[name] / scores(before)[name], rel=5e-3)
    distances = [abs(int(moved)) for moved in column(rows, "moved (ranks)")]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 0
    assert {cell["label"] for cell in cells(swept, "compare")} == {
        f"{name}: rank {rank} in A, {ranks(after)[name]} in B"
        for name, rank in ranks(before).items()
    }
    compare_cases(swept, A, A)
    assert "correlation 1.0000; 10 of A's 10" in swept.inner_text("#correlation")
    assert {*column(table(swept, "movers"), "moved (ranks)")} == {"0"}


@pytest.mark.slow
def test_comparison_starts_from_the_shown_case(swept):
    go(swept, f"#case={A}")
    with drawing(swept):
        swept.click("#compare-this")
    assert swept.input_value("#case-a") == A
    assert swept.input_value("#case-b") == "tiny-qwen3-vl/wfp8_afp8/default/small/gradient"


@pytest.mark.slow
def test_size_stability_has_a_point_per_row_of_its_table(swept):
    go(swept, "#stability")
    rows = whole_table(swept, "size-stability")[1:]
    assert len(rows) == 30
    assert {cell["label"] for cell in cells(swept, "stability")} == {
        f"{pair}, {granularity}: {value} between {sizes}, {captions}"
        for _, _, pair, granularity, sizes, captions, value in rows
    }


def test_frontier_colours_the_cases_that_no_other_beats(swept, sweep):
    go(swept, "#frontier")
    rows = {row[0]: row[1:] for row in table(swept, "frontier")[1:]}
    drawn = {cell["label"]: cell["fill"] for cell in cells(swept, "frontier")}
    measured = sweep.of_size("large", "measured")
    assert rows.keys() == measured.keys()
    assert {kind for *_, kind in rows.values()} == {"beaten by another case", "not beaten"}
    for case_id, (bits, score, kind) in rows.items():
        manifest = measured[case_id]
        assert bits == four(manifest["quantization"]["effective_bits"])
        assert score == four(total(manifest))
        label = f"{', '.join(case_id.split('/')[1:3])}: {score} per token at {bits} bits per weight"
        assert drawn[label] == FILLS[kind]


def test_frontier_is_by_measured_kl_where_every_case_has_one_and_by_the_sum_on_request(
    page, open_report, report_of, sweep_manifests
):
    """The measured KL of a case is larger, the lower its total score."""
    manifests = [
        with_whole(manifest, [place + 1.0] * 16)
        for place, manifest in enumerate(
            sorted(sweep_manifests, key=lambda m: -m.autoquant_state.total_score)
        )
    ]
    open_report(page, report_of(*manifests), "#frontier")
    shown = [whole_table(page, "frontier")]
    with drawing(page):
        page.select_option("#damage", label="total score")
    shown.append(whole_table(page, "frontier"))
    found = {
        m.case.case_id: (m.quantization.effective_bits, m.whole_model.kl, total_of(m))
        for m in manifests
    }
    for rows, place, title in zip(shown, (1, 2), ("measured KL", "total score"), strict=True):
        kinds = dict(zip(column(rows, "case"), column(rows, "frontier"), strict=True))
        assert kinds.keys() == found.keys()
        for case_id, (bits, *damages) in found.items():
            damage = damages[place - 1]
            is_beaten = any(
                other[0] <= bits and other[place] <= damage and other != found[case_id]
                for other in found.values()
            )
            assert kinds[case_id] == ("beaten by another case" if is_beaten else "not beaten"), (
                title
            )
    kl = dict(zip(column(rows, "case"), column(rows, "measured KL (nats per token)"), strict=True))
    assert kl == {case_id: f"{four(each[1])} ± 0.25" for case_id, each in found.items()}
    assert page.locator("#chart-frontier").get_by_text("total score per token").count() == 1
    assert page.locator("#chart-frontier").get_by_text("measured KL, nats").count() == 0
    assert violations(page) == []


def test_frontier_offers_no_choice_where_a_case_was_not_measured_whole(swept):
    go(swept, "#frontier")
    assert swept.locator("#frontier-choice").is_hidden()
    assert "measured KL (nats per token)" not in table(swept, "frontier")[0]


def total_of(manifest):
    return manifest.autoquant_state.total_score
