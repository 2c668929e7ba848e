"""The page of all options."""

import re
import subprocess
import sys
from pathlib import Path

from pytest_autoquant.options.table import OPTIONS

PAGE = Path(__file__).resolve().parents[3] / "docs" / "options.md"
COMMAND = "python -m pytest_autoquant.options > docs/options.md"


def test_page_is_what_its_command_prints():
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest_autoquant.options"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == PAGE.read_text(), f"generate it again: {COMMAND}"
    assert f"`{COMMAND}`" in done.stdout


def test_page_has_a_row_per_option_in_the_tables_order():
    rows = re.findall(r"^\| `(--aq-[a-z-]+)[^`]*` \| `(aq_\w+)` \|", PAGE.read_text(), re.MULTILINE)
    assert rows == [(option.flag, option.ini) for option in OPTIONS]
