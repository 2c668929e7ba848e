"""Reading of drawn charts: the marks, their places and the texts."""

import re
from xml.etree import ElementTree

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = (
    "<script>x</script><img src=x onerror=y>&amp;\"'`",
    "a\u2028b\u2029c",
    "x" * 3000,
    "é模\U0001f600",
    "{{7*7}}",
    "\\u0000",
    "](x)",
    "%00",
)


def parsed(svg):
    return ElementTree.fromstring(svg)  # noqa: S314


def marks(svg):
    """Return every mark of the plot by kind: place, shape, fill and text."""
    found = {}
    for group in parsed(svg).iter(f"{SVG}g"):
        kind = re.fullmatch(r"mark-(\w+) role-mark .*", group.get("class", ""))
        if kind:
            drawn = [
                (mark.get("transform"), mark.get("d"), mark.get("fill"), "".join(mark.itertext()))
                for mark in group
            ]
            found.setdefault(kind[1], []).extend(drawn)
    return found


def places(svg):
    """Return the fill of every rectangle by its place."""
    return {where: fill for _, where, fill, _ in marks(svg)["rect"]}


def texts(svg):
    return [text.text for text in parsed(svg).iter(f"{SVG}text") if text.text]
