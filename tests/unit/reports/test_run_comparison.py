"""Two runs side by side: which cases are compared, and what the page shows of them."""

import json
import math
from dataclasses import replace

import pytest
from builders import changed
from pytest_autoquant.errors import RecordError
from pytest_autoquant.files import write_atomic
from pytest_autoquant.manifests.records.sensitivity_manifest import dump_manifest
from pytest_autoquant.manifests.selection import with_budget
from pytest_autoquant.reports.markdown.comparison_report import compare_markdown
from pytest_autoquant.reports.run_comparison import compare_runs
from pytest_autoquant.reports.write import write_case

HOSTILE = "<script>x</script>|`a`\n# [b](c) \\"
HEADERS = [
    "case",
    "total score",
    "rank corr.",
    "top ten kept",
    "largest group drift",
    "beyond noise",
    "selected",
]


def named(manifest, name):
    """Return the same measurement of another case."""
    return changed(manifest, "case", case_id=f"toy/{name}", granularity=name)


@pytest.fixture
def run(tmp_path):
    """Write manifests to a report folder and return it."""

    def write(folder, *manifests):
        for manifest in manifests:
            write_case(tmp_path / folder, manifest)
        return tmp_path / folder

    return write


@pytest.fixture
def two_files(tmp_path):
    """Write two manifests, not in a report folder."""

    def write(one, two):
        for name, manifest in (("one.json", one), ("two.json", two)):
            write_atomic(tmp_path / name, dump_manifest(manifest))
        return tmp_path / "one.json", tmp_path / "two.json"

    return write


@pytest.fixture
def page(run, render):
    """The page that compares two runs."""

    def compared(before, after):
        return render(compare_markdown(compare_runs(run("before", *before), run("after", *after))))

    return compared


def refusal(before, after):
    with pytest.raises(RecordError) as caught:
        compare_runs(before, after)
    return str(caught.value)


def test_cases_are_matched_by_id_and_those_in_one_run_only_are_named(run, manifest, render):
    a, b, c, d = (named(manifest, name) for name in "abcd")
    found = compare_runs(run("before", a, b, c), run("after", b, d))
    assert list(found.cases) == ["toy/b"]
    assert (found.only_before, found.only_after) == (("toy/a", "toy/c"), ("toy/d",))
    text = render(compare_markdown(found)).text
    assert text.startswith("1 case in both runs, 2 only in the first, 1 only in the second.")
    assert "Only in the first: toy/a, toy/c" in text
    assert "Only in the second: toy/d" in text


def test_two_manifest_files_of_one_case_are_compared(two_files, scored):
    (found,) = compare_runs(*two_files(scored({"a": 4.0}), scored({"a": 5.0}))).cases.values()
    assert found.total_drift == 0.25


def test_two_manifests_of_other_cases_are_compared_by_the_groups_in_both(two_files, scored):
    first, second = scored({"a": 4.0, "b": 2.0}), named(scored({"b": 3.0, "c": 1.0}), "other")
    found = compare_runs(*two_files(first, second))
    assert list(found.cases) == [f"{first.case.case_id} -> toy/other"]
    (comparison,) = found.cases.values()
    assert [(group.name, group.drift) for group in comparison.groups] == [("b", 0.5)]
    assert (comparison.new, comparison.vanished) == (("c",), ("a",))
    assert (found.only_before, found.only_after) == ((), ())


def test_manifest_is_compared_with_its_case_in_a_folder(run, manifest):
    folder = run("before", named(manifest, "a"), named(manifest, "b"))
    found = compare_runs(folder, folder / named(manifest, "b").path)
    assert (list(found.cases), found.only_before) == (["toy/b"], ("toy/a",))


def test_runs_that_cannot_be_compared_are_refused(tmp_path, run, two_files, manifest, scored):
    before, after = run("before", named(manifest, "a")), run("after", named(manifest, "b"))
    away, empty = tmp_path / "away", tmp_path / "empty"
    empty.mkdir()
    assert refusal(before, away) == f"{away}: does not exist; pass a report folder or a manifest"
    assert refusal(empty, after) == f"{empty}: holds no manifest; run some cases first"
    assert refusal(before, after) == (
        f"{before} and {after} have no case in common; choose runs of the same cases. The first "
        "has toy/a; the second has toy/b"
    )
    one, two = two_files(scored({"a": 1.0}), scored({"b": 1.0}))
    assert refusal(one, two) == (
        f"{one} and {two} have no layer group in common; choose models of one architecture"
    )
    broken = after / named(manifest, "b").path
    broken.write_text("{")
    assert refusal(after, after).startswith(f"{after}: holds no manifest; left out: ")
    assert refusal(broken, after).startswith(f"{broken}: is not JSON: ")


def test_files_that_are_not_used_are_named_and_counted(run, manifest, render):
    before, after = (run(folder, named(manifest, "a")) for folder in ("before", "after"))
    run("before/copy", named(manifest, "a"))
    broken = after / "x_quant_manifest.json"
    broken.write_text("{")
    found = compare_runs(before, after)
    copy = named(manifest, "a").path.as_posix()
    assert found.left_out[0].startswith(f"{before}/{copy}: is the same case as copy/{copy}")
    assert found.left_out[1].startswith(f"{broken}: is not JSON: ")
    assert "2 files left out:" in render(compare_markdown(found)).text


def test_old_cases_of_one_name_are_matched_by_their_folders(tmp_path, manifest):
    groups = {
        f"{name}.quant_recipe": {"formats": ["F"], "importance": score, "module_names": [name]}
        for name, score in (("layers.0.a", 2.0), ("layers.0.b", 1.0))
    }
    for run_folder, folders in (("before", "xy"), ("after", "y")):
        for folder in folders:
            path = tmp_path / run_folder / folder / "int8_default_quant_manifest.json"
            write_atomic(path, json.dumps({"layer_sensitivity": groups}))
    found = compare_runs(tmp_path / "before", tmp_path / "after")
    case_id = "unknown/int8_default/unknown/unknown/unknown"
    assert list(found.cases) == [f"{case_id} (y)"]
    assert found.only_before == (f"{case_id} (x)",)


def test_most_drifted_case_comes_first_with_every_measure(page, scored):
    before = scored({"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0})
    swapped = scored({"a": 3.0, "b": 4.0, "c": 2.0, "d": 1.0})
    nearly = scored({"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.01})
    names = ("nearly", "same", "swapped")
    (table,) = page(
        [named(before, name) for name in names],
        [named(after, name) for after, name in zip((nearly, before, swapped), names, strict=True)],
    ).tables
    assert table[0] == HEADERS
    assert [row[:5] for row in table[1:]] == [
        ["toy/swapped", "+0.000%", "0.8000", "100%", "33.333%"],
        ["toy/nearly", "+0.100%", "1.0000", "100%", "1.000%"],
        ["toy/same", "+0.000%", "1.0000", "100%", "0.000%"],
    ]


def test_selection_changes_are_counted(page, manifest):
    layers = {name: replace(layer, selected=True) for name, layer in manifest.layers.items()}
    state = {"score": 10.0, "effective_bits": 4.125}
    after = changed(replace(manifest, layers=layers), "autoquant_state", **state)
    tables = page([manifest], [after]).tables
    assert tables[0][1][6] == "1 changed"


def test_single_case_shows_its_groups_most_drifted_first(page, scored):
    before, after = scored({"a": 4.0, "b": 2.0, "c": 1.0}), scored({"a": 4.0, "b": 1.0, "c": 3.0})
    _, groups = page([before], [after]).tables
    assert groups == [
        ["group", "score before", "score after", "drift", "rank", "beyond noise"],
        ["c", "1", "3", "+200.000%", "3 to 2", "unknown"],
        ["b", "2", "1", "-50.000%", "2 to 3", "unknown"],
        ["a", "4", "4", "+0.000%", "1 to 1", "unknown"],
    ]
    many = scored({f"g{i}": 1.0 + i for i in range(15)})
    assert len(page([many], [many]).tables[1]) == 1 + 10


def test_differences_beyond_noise_are_marked(page, scored):
    """Scores by caption: ``b`` rises alike on each caption, ``c`` by chance, ``a`` by rounding."""
    before = scored({"a": (9.0, 20.0, 70.0), "b": (10.0, 20.0, 60.0), "c": (1.0, 2.0, 7.0)})
    after = scored({"a": (9.0, 20.0, 70.00001), "b": (60.0, 70.0, 110.0), "c": (2.0, 1.0, 7.5)})
    shown = page([before], [after])
    cases, groups = shown.tables
    assert cases[1][5] == "total and 1 of 3 groups"
    assert {row[0]: row[5] for row in groups[1:]} == {"a": "no", "b": "yes", "c": "no"}
    assert "5% are beyond it by chance" in shown.text
    (same, _) = page([before], [before]).tables
    assert same[1][5] == "0 of 3 groups"


def test_scores_that_are_not_finite_are_shown_as_missing(page, scored):
    before, after = scored({"a": 4.0, "b": 2.0}), scored({"a": math.nan, "b": 2.0})
    cases, groups = page([before], [after]).tables
    assert cases[1][1] == "+inf%"
    assert groups[1] == ["a", "4", "n/a", "+inf%", "1 to 1", "unknown"]


def test_different_fingerprint_field_is_mentioned_once(page, manifest):
    after = changed(manifest, "environment", torch="2.12.0")
    befores, afters = ([named(side, name) for name in "ab"] for side in (manifest, after))
    assert page(befores, afters).text.count("on something else: torch 2.11.0, then 2.12") == 1
    equal = page(befores, befores).text
    assert "Only in" not in equal
    assert "Measured on something else" not in equal


def test_different_bit_budget_is_mentioned_once(page, manifest):
    befores, afters = (
        [named(side, name) for name in "ab"] for side in (manifest, with_budget(manifest, 6.0))
    )
    assert page(befores, afters).text.count("under 8 bits per weight in the first run and 6") == 1
    assert "bits per weight" not in page(befores, befores).text


def test_hostile_names_break_neither_the_tables_nor_the_page(page, scored):
    before, after = scored({HOSTILE: 4.0}), scored({HOSTILE: 5.0})
    sides = []
    for name, manifest, version in (("before", before, "1"), ("after", after, HOSTILE)):
        manifest = changed(manifest, "environment", transformers=version)
        other = changed(manifest, "case", case_id=f"{name} {HOSTILE}", granularity="other")
        sides.append([changed(manifest, "case", case_id=HOSTILE), other])
    shown = page(*sides)
    assert shown.tags <= {"p", "code", "table", "thead", "tbody", "tr", "th", "td"}
    assert [[len(row) for row in table] for table in shown.tables] == [[7, 7], [6, 6]]
    name = HOSTILE.replace("`", "'").replace("\n", " ")
    assert (shown.tables[0][1][0], shown.tables[1][1][0]) == (name, name)
