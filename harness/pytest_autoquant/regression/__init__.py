"""Comparison of results, the regression gate, resumed runs."""
