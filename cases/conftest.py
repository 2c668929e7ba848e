"""Command-line and marker names without a prefix. They hold for the cases alone."""

import pytest

MARKERS = {
    "gpu": "the same as aq_gpu",
    "structure": "the same as aq_structure",
    "scheme": "the same as aq_scheme",
    "experimental": "the same as aq_experimental",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("autoquant")
    for name in ("structure-only", "gpu-only"):
        group.addoption(
            f"--{name}",
            dest=f"aq_{name.replace('-', '_')}",
            action="store_true",
            default=None,
            help=f"the same as --aq-{name}",
        )


def pytest_configure(config: pytest.Config) -> None:
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


def pytest_itemcollected(item: pytest.Item) -> None:
    for name in MARKERS:
        if item.get_closest_marker(f"aq_{name}"):
            item.add_marker(name)
