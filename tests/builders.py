"""Builders that tests of several rooms share."""

from dataclasses import replace


def changed(record, part, **values):
    """Return a record with some fields of one of its parts replaced."""
    return replace(record, **{part: replace(getattr(record, part), **values)})
