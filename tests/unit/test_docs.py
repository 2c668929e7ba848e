"""The documentation names the pairs, granularities, options and files that there are."""

import re
from pathlib import Path

import pytest
from pytest_autoquant.formats.effective_config import resolve
from pytest_autoquant.formats.granularity import Granularity, builtin_granularities
from pytest_autoquant.formats.quant_pair import PRESETS, builtin_pairs
from pytest_autoquant.options.table import OPTIONS

ROOT = Path(__file__).resolve().parents[2]
PLAIN = Granularity(name="default")


@pytest.mark.parametrize("pair", builtin_pairs().values(), ids=lambda pair: pair.name)
def test_mapping_page_lists_every_pair(pair):
    bits = resolve(pair, PLAIN).effective_bits
    whose = "ModelOpt" if (pair.weight, pair.activation) in PRESETS else "ours, experimental"
    row = f"| `{pair.name}` | `{pair.format_name}` | {whose} | {bits:g} |"
    assert row in (ROOT / "docs" / "mapping.md").read_text()


@pytest.mark.parametrize("name", builtin_granularities())
def test_mapping_page_lists_every_granularity(name):
    assert f"\n| `{name}` | " in (ROOT / "docs" / "mapping.md").read_text()


def documentation():
    """The text of the README and of every page."""
    paths = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return "\n".join(path.read_text() for path in paths)


def test_documentation_mentions_only_options_that_exist():
    mentioned = {*re.findall(r"--aq-[a-z-]+", documentation())} - {"--aq-", "--aq-no-"}
    assert mentioned <= {flag for option in OPTIONS for flag in (option.flag, option.off_flag)}


def test_documented_commands_give_option_values_with_an_equals_sign():
    commands = re.findall(r"^\$ (.+)$", documentation(), re.MULTILINE)
    assert len(commands) > 20
    values = "|".join(option.flag for option in OPTIONS if not option.is_flag)
    spaced = [line for line in commands if re.search(rf"({values}) +[^ -#]", line)]
    assert spaced == []


def test_relative_links_of_the_documentation_lead_to_files():
    for path in [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^):#]+)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"
