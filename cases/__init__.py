"""The parametrized cases. Installed as ``pytest_autoquant.cases``."""
