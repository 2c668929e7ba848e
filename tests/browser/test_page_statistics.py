"""What the page computes over several cases, against scipy and plain Python on the manifests."""

import base64
import copy
import json
import random
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import mean

import pytest
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
    sort_by,
    table,
    total,
    whole_table,
)
from pytest_autoquant.reports.run_comparison import compare_runs
from pytest_autoquant.reports.write import write_case, write_comparison
from scipy.stats import spearmanr

SIZES = ("small", "medium", "large")
A = "tiny-qwen3-vl/wint4_aint8/default/small/gradient"
B = "tiny-qwen3-vl/wint8_afp16/w_group64/large/gradient"
SEED = 5


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


def shares_by_group(manifests):
    found = {}
    for manifest in manifests.values():
        for name, score in scores(manifest).items():
            found.setdefault(name, []).append(score / total(manifest))
    return found


def test_the_means_over_cases_are_those_of_the_manifests(swept, sweep):
    go(swept, "#groups")
    for size in SIZES:
        choose_size(swept, size)
        check_means(swept, sweep, size)


def check_means(swept, sweep, size):
    expected = shares_by_group(sweep.of_size(size, "measured"))
    rows = table(swept, "groups")
    assert len(rows) - 1 == len(expected) == 24
    for name, count, average, lowest, highest in rows[1:]:
        found = expected[name]
        assert count == str(len(found)) == "10"
        assert float(average[:-1]) == pytest.approx(100 * mean(found), abs=0.0501)
        assert float(lowest[:-1]) == pytest.approx(100 * min(found), abs=0.0501)
        assert float(highest[:-1]) == pytest.approx(100 * max(found), abs=0.0501)
    order = [mean(expected[name]) for name in column(rows, "group")]
    assert order == sorted(order, reverse=True)


def test_the_means_over_all_sizes_are_those_of_the_manifests(swept, sweep):
    measured = {c: m for c, m in sweep.manifests.items() if m["case"]["status"] == "measured"}
    means = {name: mean(found) for name, found in shares_by_group(measured).items()}
    best = sorted(means, key=lambda name: -means[name])[:10]
    assert table(swept, "most-sensitive-groups")[1:] == [
        [str(place), name, percent(means[name])] for place, name in enumerate(best, start=1)
    ]


def test_groups_by_case_is_drawn_in_many_colours(swept):
    go(swept, "#groups")
    found = colours(swept, "#chart-groups canvas")
    cells_of_13_pixels = {colour for colour, count in found.items() if count >= 100}
    assert len(cells_of_13_pixels) > 50
    picture = swept.evaluate("document.querySelector('#chart-groups canvas').toDataURL()")
    assert base64.b64decode(picture.partition(",")[2])[:4] == b"\x89PNG"


def test_the_rows_selector_draws_all_groups(new_page, large, open_report):
    page = open_report(new_page(), large, "#groups")
    height = "document.querySelector('#chart-groups canvas').getBoundingClientRect().height"
    few = page.evaluate(height)
    with drawing(page):
        page.select_option("#rows", label="all groups")
    assert page.evaluate(height) - few == pytest.approx((250 - 40) * 13, abs=30)
    assert len(whole_table(page, "groups")) == 251


def test_pointing_at_a_square_says_group_case_and_share(swept, sweep):
    go(swept, "#groups")
    swept.locator("#chart-groups canvas").scroll_into_view_if_needed()
    box = swept.locator("#chart-groups canvas").bounding_box()
    said = set()
    for step in range(40, 100, 4):
        swept.mouse.move(box["x"] + box["width"] * step / 100, box["y"] + box["height"] * 0.7)
        said.add(swept.inner_text("#detail-groups"))
    manifests = sweep.of_size("large", "measured")
    expected = {
        f"{name} in {m['case']['pair']} {m['case']['granularity']}: "
        f"{percent(score / total(m))} of the total score"
        for m in manifests.values()
        for name, score in scores(m).items()
    }
    assert len(said - {""}) > 2
    assert said - {""} <= expected


def test_clicking_a_square_opens_its_case(swept):
    go(swept, "#groups")
    canvas = swept.locator("#chart-groups canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    for place in range(int(box["width"]), 0, -6):
        swept.mouse.move(box["x"] + place, box["y"] + box["height"] * 0.7)
        if said := swept.inner_text("#detail-groups"):
            break
    group, case, _ = re.split(" in |: ", said)
    with drawing(swept):
        swept.mouse.click(box["x"] + place, box["y"] + box["height"] * 0.7)
    chosen = swept.input_value("#case-choice")
    assert chosen == f"tiny-qwen3-vl/{case.replace(' ', '/')}/large/gradient"
    assert group in column(table(swept, "layer-groups"), "group")


def test_two_cases_correlate_as_scipy_says(swept, sweep):
    first = list(sweep.manifests)[::7]
    for a, b in combinations(first, 2):
        compare_cases(swept, a, b)
        before, after = scores(sweep.manifests[a]), scores(sweep.manifests[b])
        kept = len({*list(before)[:10]} & {*list(after)[:10]})
        assert swept.inner_text("#correlation") == (
            f"24 groups in both. Spearman rank correlation {correlation(before, after):.4f}; "
            f"{kept} of A's 10 most sensitive are among B's ten; "
            f"total score {four(total(sweep.manifests[a]))} per token "
            f"and {four(total(sweep.manifests[b]))} per token."
        )


def test_the_movers_are_those_of_the_two_rankings(swept, sweep):
    compare_cases(swept, A, B)
    before, after = sweep.manifests[A], sweep.manifests[B]
    rows = table(swept, "movers")
    assert len(rows) == 25
    for name, in_a, in_b, moved, score_a, score_b, ratio in rows[1:]:
        assert (int(in_a), int(in_b)) == (ranks(before)[name], ranks(after)[name])
        assert moved == signed(int(in_b) - int(in_a))
        assert (score_a, score_b) == (four(scores(before)[name]), four(scores(after)[name]))
        assert ratio == four(scores(after)[name] / scores(before)[name])
    distances = [abs(int(moved)) for moved in column(rows, "moved (ranks)")]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 0


def test_the_chart_of_two_cases_has_a_point_per_group(swept, sweep):
    compare_cases(swept, A, B)
    before, after = ranks(sweep.manifests[A]), ranks(sweep.manifests[B])
    assert {cell["label"] for cell in cells(swept, "compare")} == {
        f"{name}: rank {before[name]} in A, {after[name]} in B" for name in before
    }


def test_a_case_compared_with_itself_does_not_move(swept):
    compare_cases(swept, A, A)
    assert "correlation 1.0000; 10 of A's 10" in swept.inner_text("#correlation")
    assert {*column(table(swept, "movers"), "moved (ranks)")} == {"0"}


def test_compare_with_another_starts_from_the_case_shown(swept):
    go(swept, f"#case={A}")
    with drawing(swept):
        swept.click("#compare-this")
    assert swept.input_value("#case-a") == A
    assert swept.input_value("#case-b") == "tiny-qwen3-vl/wfp8_afp8/default/small/gradient"


def test_size_stability_is_scipys(swept, sweep):
    go(swept, "#stability")
    rows = whole_table(swept, "size-stability")
    found = {tuple(row[2:5]): row[5] for row in rows[1:]}
    families = {}
    for manifest in sweep.manifests.values():
        case = manifest["case"]
        if case["status"] == "measured":
            family = families.setdefault((case["pair"], case["granularity"]), {})
            family[case["size"]] = scores(manifest)
    expected = {
        (*family, f"{small} and {large}"): f"{correlation(sizes[small], sizes[large]):.4f}"
        for family, sizes in families.items()
        for small, large in combinations(SIZES, 2)
    }
    assert found == expected
    assert len(expected) == 30
    assert {cell["label"] for cell in cells(swept, "stability")} == {
        f"{pair}, {granularity}: {value} between {sizes}"
        for (pair, granularity, sizes), value in expected.items()
    }


def test_the_frontier_is_what_brute_force_finds(swept, sweep):
    go(swept, "#frontier")
    for size in SIZES:
        choose_size(swept, size)
        check_frontier(swept, sweep, size)


def check_frontier(swept, sweep, size):
    points = {
        case_id: (manifest["quantization"]["effective_bits"], total(manifest))
        for case_id, manifest in sweep.of_size(size, "measured").items()
    }

    def is_beaten(point):
        others = (other for other in points.values() if other != point)
        return any(bits <= point[0] and score <= point[1] for bits, score in others)

    rows = table(swept, "frontier")
    assert {row[0]: row[1:] for row in rows[1:]} == {
        case_id: [
            four(point[0]),
            four(point[1]),
            "beaten by another case" if is_beaten(point) else "not beaten",
        ]
        for case_id, point in points.items()
    }
    drawn = {cell["label"]: cell["fill"] for cell in cells(swept, "frontier")}
    for case_id, point in points.items():
        pair, granularity = case_id.split("/")[1:3]
        label = f"{pair}, {granularity}: {four(point[1])} per token at {four(point[0])} bits"
        fill = "rgb(0, 114, 178)" if is_beaten(point) else "rgb(213, 94, 0)"
        assert drawn[f"{label} per weight"] == fill


@dataclass(frozen=True)
class TwoRuns:
    page: object
    before: dict
    after: dict


@pytest.fixture(scope="module")
def two_runs(sweep, tmp_path_factory):
    """The sweep, and a second run that measured most groups otherwise and lacks a case."""
    folder = tmp_path_factory.mktemp("compared")
    shutil.copytree(sweep.root, folder / "second")
    after = {}
    for path in sorted((folder / "second").rglob("*_quant_manifest.json")):
        manifest = json.loads(path.read_text())
        case_id = manifest["case"]["case_id"]
        if case_id == A:
            path.unlink()
            continue
        after[case_id] = remeasured(manifest, random.Random(SEED + len(after)))  # noqa: S311
        path.write_text(json.dumps(after[case_id]))
    page = folder / "compared.html"
    command = [
        sys.executable,
        "-m",
        "pytest_autoquant.cli",
        "compare",
        sweep.root,
        folder / "second",
    ]
    subprocess.run([*command, "--html", page], check=True, capture_output=True, timeout=120)
    return TwoRuns(page, sweep.manifests, after)


def remeasured(manifest, random_of):
    changed = copy.deepcopy(manifest)
    groups = changed["layer_sensitivity"]
    for group in groups.values():
        group["importance"] *= random_of.choice((0.25, 0.9, 1.0, 1.2, 3.0))
        group["scores"][0] = group["importance"]
    ranked = sorted(groups, key=lambda name: -groups[name]["importance"])
    for rank, name in enumerate(ranked, start=1):
        groups[name]["rank"] = rank
    changed["sensitivity_ranking"] = [
        {"name": name, "importance": groups[name]["importance"]} for name in ranked
    ]
    state = changed["autoquant_state"]
    state["total_score"] = sum(group["importance"] for group in groups.values())
    return changed


def largest_drift(before, after):
    floor = 0.01 * mean(before.values())
    return max(abs(after[name] - score) / max(score, floor) for name, score in before.items())


def test_the_page_of_two_runs_says_how_each_case_drifted(page, two_runs, open_report):
    open_report(page, two_runs.page, "#compare")
    rows = {row[0]: row[1:] for row in whole_table(page, "runs")[1:]}
    assert rows.keys() == two_runs.after.keys()
    for case_id, row in rows.items():
        before, after = two_runs.before[case_id], two_runs.after[case_id]
        first, second = scores(before), scores(after)
        kept = len({*list(first)[:10]} & {*list(second)[:10]})
        assert row == [
            f"{100 * (total(after) / total(before) - 1):+.3f}",
            f"{correlation(first, second):.4f}",
            f"{10 * kept}",
            f"{100 * largest_drift(first, second):.3f}",
            "0",
            "",
        ]
    assert "35 cases in both runs, 1 only in A, 0 only in B." in page.inner_text("#section-compare")


def test_a_case_of_two_runs_links_to_both_sides_of_it(page, two_runs, open_report):
    open_report(page, two_runs.page, "#compare")
    page.locator("#section-compare .dt-search input").first.fill(B)
    with drawing(page):
        page.locator('table[data-name="runs"] tbody a').click()
    sides = [page.locator(f"{side} option:checked").inner_text() for side in ("#case-a", "#case-b")]
    assert sides == [f"A: {B}", f"B: {B}"]
    before, after = two_runs.before[B], two_runs.after[B]
    expected = correlation(scores(before), scores(after))
    assert f"Spearman rank correlation {expected:.4f};" in page.inner_text("#correlation")
    assert len(cells(page, "compare")) == 24
    found = {row[0]: (int(row[1]), int(row[2])) for row in table(page, "movers")[1:]}
    first, second = ranks(before), ranks(after)
    assert found == {name: (first[name], second[name]) for name in first}


def test_the_page_of_two_runs_links_to_files_of_each(page, two_runs, open_report, sweep):
    open_report(page, two_runs.page)
    for side, root in (("A", sweep.root), ("B", two_runs.page.parent / "second")):
        go(page, "#case")
        with drawing(page):
            page.select_option("#case-choice", label=f"{side}: {B}")
        href = page.locator("#case-facts a", has_text="manifest").get_attribute("href")
        path = (two_runs.page.parent / href).resolve()
        assert path.is_relative_to(root)
        assert json.loads(path.read_text())["case"]["case_id"] == B


def test_sorting_the_drift_table_puts_the_largest_first(page, two_runs, open_report):
    open_report(page, two_runs.page, "#compare")
    for direction in ("ascending", "descending"):
        sort_by(page, "runs", "total score drift", direction)
        shown = column(whole_table(page, "runs"), "total score drift (%)")
        values = list(map(float, shown))
        assert values == sorted(values, reverse=direction == "descending")
    assert values[0] > 0 > values[-1]


def test_a_drift_without_end_sorts_above_all_others(page, template, tmp_path, open_report):
    """In the second run one case came to no finite total."""
    totals = {"a": (1.0, 1.1), "b": (1.0, None), "c": (1.0, 11.0), "d": (1.0, 3.0)}
    for side, folder in enumerate(("first", "second")):
        for name, both in totals.items():
            write_case(tmp_path / folder, of_total(template, name, both[side]))
    path = tmp_path / "compared.html"
    write_comparison(path, compare_runs(tmp_path / "first", tmp_path / "second"))
    open_report(page, path, "#compare")
    for direction, order in (("ascending", "adcb"), ("descending", "bcda")):
        sort_by(page, "runs", "total score drift", direction)
        cases = column(table(page, "runs"), "case")
        assert [case.split("/")[2] for case in cases] == [*order]


def of_total(template, granularity, value):
    case_id = f"{template.model.name}/{template.case.pair}/{granularity}/small/gradient"
    return replace(
        template,
        case=replace(template.case, case_id=case_id, granularity=granularity, size="small"),
        autoquant_state=replace(template.autoquant_state, total_score=value),
    )
