"""Lists the packages; everything else is in pyproject.toml.

The top-level folder ``cases`` is installed as ``pytest_autoquant.cases``, and pyproject.toml cannot
join one such folder to packages that setuptools finds by itself.
"""

from setuptools import find_packages, setup

setup(packages=[*find_packages("harness"), "pytest_autoquant.cases"])
