"""A page as large as a full grid's: 600 cases of 250 groups."""

import pytest
from page_reading import cells, choose_size, go, table

pytestmark = pytest.mark.slow


def test_page_is_below_8_megabytes(large):
    assert 1_000_000 < large.page.stat().st_size < 8_000_000


def test_every_section_and_size_is_drawn(page, large, open_report):
    open_report(page, large)
    assert len(cells(page, "grid")) == 200
    for section in ("cases", "case", "groups", "compare", "stability", "frontier"):
        go(page, f"#{section}")
        assert page.locator(f"#section-{section} :is(svg, canvas, table)").count() > 0
    go(page, "#grid")
    choose_size(page, "small")
    assert len(cells(page, "grid")) == 200


def test_groups_are_shown_25_at_a_time(page, large, open_report):
    open_report(page, large, "#case")
    for first in (1, 26):
        ranks = [row[0] for row in table(page, "layer-groups")[1:]]
        assert ranks == [str(rank) for rank in range(first, first + 25)]
        shown = f"Showing {first} to {first + 24} of 250 entries"
        assert page.inner_text("#section-case .dt-info") == shown
        page.click("#section-case .dt-paging button[data-dt-idx=next]")
