"""What the documentation says about the vocabulary is what the code says."""

from pathlib import Path

import pytest
from pytest_autoquant.formats.effective_config import resolve
from pytest_autoquant.formats.granularity import Granularity, builtin_granularities
from pytest_autoquant.formats.quant_pair import PRESETS, builtin_pairs
from pytest_autoquant.options.settings import OPTIONS

ROOT = Path(__file__).resolve().parents[2]
PLAIN = Granularity(name="default")


@pytest.mark.parametrize("pair", builtin_pairs().values(), ids=lambda pair: pair.name)
def test_the_mapping_table_lists_every_pair(pair):
    bits = resolve(pair, PLAIN).effective_bits
    whose = "ModelOpt" if (pair.weight, pair.activation) in PRESETS else "ours, experimental"
    row = f"| `{pair.name}` | `{pair.format_name}` | {whose} | {bits:g} |"
    assert row in (ROOT / "docs" / "mapping.md").read_text()


@pytest.mark.parametrize("name", builtin_granularities())
def test_the_readme_names_every_granularity(name):
    assert f"`{name}`" in (ROOT / "README.md").read_text()


def test_every_option_that_the_documentation_mentions_exists():
    import re

    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    mentioned = {
        flag for path in documents for flag in re.findall(r"--aq-[a-z-]+", path.read_text())
    }
    assert mentioned - {"--aq-"} <= {option.flag for option in OPTIONS}
