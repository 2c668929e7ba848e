"""The parametrized cases: ``pytest --pyargs pytest_autoquant.cases``, or ``pytest cases`` here."""
