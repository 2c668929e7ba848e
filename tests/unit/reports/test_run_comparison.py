"""Two runs side by side: which cases are compared, and what the page shows of them."""

import math
from dataclasses import replace

import pytest
from pytest_autoquant.errors import RecordError
from pytest_autoquant.files import write_atomic
from pytest_autoquant.manifests.sensitivity_manifest import dump_manifest
from pytest_autoquant.reports.comparison_report import compare_markdown
from pytest_autoquant.reports.run_comparison import compare_runs
from pytest_autoquant.reports.write import write_case

HOSTILE = "<script>x</script>|`a`\n# [b](c) \\"
HEADERS = [
    "case",
    "total score",
    "rank corr.",
    "top ten kept",
    "largest group drift",
    "selected",
]


def named(manifest, name):
    """Return the same measurement of another case."""
    case = replace(manifest.case, case_id=f"toy/{name}", granularity=name)
    return replace(manifest, case=case)


@pytest.fixture
def run(tmp_path):
    """Write manifests to a report folder and return it."""

    def write(folder, *manifests):
        for manifest in manifests:
            write_case(tmp_path / folder, manifest)
        return tmp_path / folder

    return write


def test_cases_are_matched_by_id_and_those_in_one_run_only_are_named(run, manifest):
    cases = {name: named(manifest, name) for name in "abcd"}
    found = compare_runs(
        run("before", cases["a"], cases["b"], cases["c"]), run("after", cases["b"], cases["d"])
    )
    assert list(found.cases) == ["toy/b"]
    assert (found.only_before, found.only_after) == (("toy/a", "toy/c"), ("toy/d",))


def test_two_manifest_files_of_one_case_are_compared(tmp_path, scored):
    for name, score in (("one.json", 4.0), ("two.json", 5.0)):
        write_atomic(tmp_path / name, dump_manifest(scored({"a": score})))
    (found,) = compare_runs(tmp_path / "one.json", tmp_path / "two.json").cases.values()
    assert found.total_drift == 0.25


def test_manifest_is_compared_with_its_case_in_a_folder(run, manifest):
    folder = run("before", named(manifest, "a"), named(manifest, "b"))
    found = compare_runs(folder, folder / named(manifest, "b").path)
    assert (list(found.cases), found.only_before) == (["toy/b"], ("toy/a",))


def test_missing_path_is_refused(tmp_path, run, manifest):
    with pytest.raises(RecordError) as caught:
        compare_runs(run("before", manifest), tmp_path / "away")
    assert str(caught.value) == (
        f"{tmp_path / 'away'}: does not exist; pass a report folder or a manifest"
    )


def test_folder_without_manifests_is_refused(tmp_path, run, manifest):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordError) as caught:
        compare_runs(tmp_path / "empty", run("after", manifest))
    assert str(caught.value) == (f"{tmp_path / 'empty'}: holds no manifest; run some cases first")


def test_runs_without_a_case_in_common_are_refused(run, manifest):
    before, after = run("before", named(manifest, "a")), run("after", named(manifest, "b"))
    with pytest.raises(RecordError) as caught:
        compare_runs(before, after)
    assert str(caught.value) == (
        f"{before} and {after} have no case in common; choose runs of the same cases"
    )


def test_two_manifests_of_one_case_in_a_folder_are_refused(run, manifest):
    folder = run("before", manifest)
    run("before/copy", manifest)
    with pytest.raises(RecordError) as caught:
        compare_runs(folder, folder)
    assert str(caught.value) == f"{folder}: holds two manifests of {manifest.case.case_id}"


def test_unreadable_manifest_is_refused_by_its_path(run, manifest):
    folder = run("before", manifest)
    (folder / manifest.path).write_text("{")
    with pytest.raises(RecordError) as caught:
        compare_runs(folder, folder)
    assert str(caught.value).startswith(f"{folder / manifest.path}: is not JSON: ")


@pytest.fixture
def page(run, render):
    """The page that compares two runs."""

    def compared(before, after):
        return render(compare_markdown(compare_runs(run("before", *before), run("after", *after))))

    return compared


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
    tables = page([manifest], [replace(manifest, layers=layers)]).tables
    assert tables[0][1][5] == "1 changed"


def test_single_case_shows_its_groups_most_drifted_first(page, scored):
    before, after = scored({"a": 4.0, "b": 2.0, "c": 1.0}), scored({"a": 4.0, "b": 1.0, "c": 3.0})
    _, groups = page([before], [after]).tables
    assert groups == [
        ["group", "score before", "score after", "drift", "rank"],
        ["c", "1", "3", "+200.000%", "3 to 2"],
        ["b", "2", "1", "-50.000%", "2 to 3"],
        ["a", "4", "4", "+0.000%", "1 to 1"],
    ]


def test_at_most_ten_groups_of_a_single_case_are_shown(page, scored):
    many = scored({f"g{i}": 1.0 + i for i in range(15)})
    assert len(page([many], [many]).tables[1]) == 1 + 10


def test_scores_that_are_not_finite_are_shown_as_missing(page, scored):
    before, after = scored({"a": 4.0, "b": 2.0}), scored({"a": math.nan, "b": 2.0})
    cases, groups = page([before], [after]).tables
    assert cases[1][1] == "+inf%"
    assert groups[1] == ["a", "4", "n/a", "+inf%", "1 to 1"]


def test_page_says_how_many_cases_there_are_and_names_the_others(page, manifest):
    cases = {name: named(manifest, name) for name in "abcd"}
    text = page([cases["a"], cases["b"], cases["c"]], [cases["b"], cases["d"]]).text
    assert text.startswith("1 case in both runs, 2 only in the first, 1 only in the second.")
    assert "Only in the first: toy/a, toy/c" in text
    assert "Only in the second: toy/d" in text


def test_equal_fingerprints_are_not_mentioned(page, manifest):
    text = page([manifest], [manifest]).text
    assert "Only in" not in text
    assert "Measured on something else" not in text


def test_different_fingerprint_field_is_mentioned_once(page, manifest):
    after = replace(manifest, environment=replace(manifest.environment, torch="2.12.0"))
    text = page(
        [named(manifest, "a"), named(manifest, "b")], [named(after, "a"), named(after, "b")]
    ).text
    assert text.count("Measured on something else: torch 2.11.0, then 2.12.0") == 1
    assert text.count("2.12.0") == 1


def test_hostile_names_break_neither_the_tables_nor_the_page(tmp_path, render, scored):
    before, after = scored({HOSTILE: 4.0}), scored({HOSTILE: 5.0})
    for folder, manifest, version in (("before", before, "1"), ("after", after, HOSTILE)):
        case = replace(manifest.case, case_id=HOSTILE)
        other = replace(manifest.case, case_id=f"{folder} {HOSTILE}", granularity="other")
        environment = replace(manifest.environment, transformers=version)
        for record in (case, other):
            write_case(tmp_path / folder, replace(manifest, case=record, environment=environment))
    page = render(compare_markdown(compare_runs(tmp_path / "before", tmp_path / "after")))
    assert page.tags <= {"p", "code", "table", "thead", "tbody", "tr", "th", "td"}
    assert [[len(row) for row in table] for table in page.tables] == [[6, 6], [5, 5]]
    shown = HOSTILE.replace("`", "'").replace("\n", " ")
    assert (page.tables[0][1][0], page.tables[1][1][0]) == (shown, shown)


def test_two_manifests_of_other_cases_are_compared_by_the_groups_in_both(tmp_path, scored):
    first, second = scored({"a": 4.0, "b": 2.0}), named(scored({"b": 3.0, "c": 1.0}), "other")
    for name, manifest in (("one.json", first), ("two.json", second)):
        write_atomic(tmp_path / name, dump_manifest(manifest))
    found = compare_runs(tmp_path / "one.json", tmp_path / "two.json")
    assert list(found.cases) == [f"{first.case.case_id} -> toy/other"]
    (comparison,) = found.cases.values()
    assert [(group.name, group.drift) for group in comparison.groups] == [("b", 0.5)]
    assert (comparison.new, comparison.vanished) == (("c",), ("a",))
    assert (found.only_before, found.only_after) == ((), ())


def test_two_manifests_without_a_group_in_common_are_refused(tmp_path, scored):
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    write_atomic(one, dump_manifest(scored({"a": 1.0})))
    write_atomic(two, dump_manifest(scored({"b": 1.0})))
    with pytest.raises(RecordError) as caught:
        compare_runs(one, two)
    assert str(caught.value) == (
        f"{one} and {two} have no layer group in common; choose models of one architecture"
    )
