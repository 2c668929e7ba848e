"""``python -m pytest_autoquant.options``: print docs/options.md."""

from pytest_autoquant.options.reference import options_page

print(options_page(), end="")
