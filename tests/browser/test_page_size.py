"""A page as large as a full grid's: 600 cases of 250 groups."""

import time

from page_reading import cells, choose_size, go, settle, table

SANE = 10
"""Seconds; the wish is one, what it took is printed."""


def test_the_grid_of_600_cases_stands_soon(new_page, large, capsys):
    page = new_page()
    begun = time.perf_counter()
    page.goto(large.page.as_uri())
    page.wait_for_selector("#chart-grid svg path[role=button]")
    stands = time.perf_counter() - begun
    settle(page)
    with capsys.disabled():
        megabytes = large.page.stat().st_size / 1e6
        print(f"\n600 cases of 250 groups, {megabytes:.1f} MB: the grid stands in {stands:.2f} s")
    assert stands < SANE
    assert len(cells(page, "grid")) == 200


def test_the_page_of_600_cases_is_below_8_megabytes(large):
    assert 1_000_000 < large.page.stat().st_size < 8_000_000


def test_every_section_of_600_cases_stands_soon(new_page, large, open_report, capsys):
    page = open_report(new_page(), large)
    took = {}
    for section in ("cases", "case", "groups", "compare", "stability", "frontier"):
        begun = time.perf_counter()
        go(page, f"#{section}")
        took[section] = time.perf_counter() - begun
    begun = time.perf_counter()
    choose_size(page, "small")
    took["another size"] = time.perf_counter() - begun
    with capsys.disabled():
        print("\n" + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in took.items()))
    assert max(took.values()) < SANE


def test_a_page_of_250_groups_shows_25_at_a_time(new_page, large, open_report):
    page = open_report(new_page(), large, "#case")
    rows = table(page, "layer-groups")
    assert [row[0] for row in rows[1:]] == [str(rank) for rank in range(1, 26)]
    assert page.inner_text("#section-case .dt-info") == "Showing 1 to 25 of 250 entries"
    page.click("#section-case .dt-paging button[data-dt-idx=next]")
    rows = table(page, "layer-groups")
    assert [row[0] for row in rows[1:]] == [str(rank) for rank in range(26, 51)]
