"""Hostile names, texts and JSON, and damage done to JSON documents."""

import copy
import json
import unicodedata

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

#: The longest error message that a hostile file may cause, in characters.
LONGEST_MESSAGE = 5_000

HOSTILE_NAMES = (
    "../../x",
    "..",
    ".",
    "/escaped",
    "~/x",
    "..\\..\\x",
    "C:\\x",
    "CON",
    "nul",
    "a\0b",
    "a\nb",
    "a/b/../../../c",
    "",
    "\u2025",
    "\uff0f",
    "-rf",
    "*",
    "x" * 300,
    "../" * 200,
    "模" * 300,
    "%2e%2e%2f",
    "_autoquant_lm_quant_manifest.json",
    "layer-sensitivity-report.md",
)
HOSTILE_TEXTS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</td></tr></table><a href=//evil>x</a>",
    "](javascript:x)",
    "x](javascript:x) [y](http://evil)",
    "![i](http://evil/i.png)",
    "<http://evil>",
    "[x]: http://evil",
    "\n\n[x]: http://evil\n\n[x]",
    "|",
    "a|b|c|",
    "\\|",
    "\\",
    "`",
    "``` `` `",
    "`<b>`",
    "\n| a | b |\n|---|---|\n",
    "\n# heading\n\n- item\n",
    "&lt;script&gt;&#60;b&#62;&#124;",
    "\x1b[2J\x1b]0;title\x07",
    "\x9b2J\x85\x90",
    "a\x00b\x08c\x7f",
    "a\u2028b\u2029c\r\nd\x0be\x0cf",
    "<!--",
    "--> <b>",
    "x" * 2000,
)
JSON_NUMBERS = (
    "NaN",
    "Infinity",
    "1e999",
    "1e-320",
    "-1e308",
    "-0.0",
    "1" + "0" * 400,
    "9" * 5000,
    "0",
    "1.5",
    '"nan"',
    '"1"',
)
JSON_TOKENS = (
    *JSON_NUMBERS,
    "true",
    "null",
    '"\\ud800"',
    '"\\u0000"',
    '"\\u001b[2J"',
    '"\\u009b"',
    *("[" * depth + "]" * depth for depth in (254, 255, 100_000)),
    *('{"a":' * depth + "1" + "}" * depth for depth in (254, 255, 100_000)),
    '"' + "x" * 100_000 + '"',
    "[]",
    "{}",
    '{"":{}}',
    "[1",
    "/**/1",
    "'a'",
    "\x00",
    "\ufeff1",
)

fuzz = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from((*HOSTILE_TEXTS, *HOSTILE_NAMES)),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
hostile_texts = st.lists(
    st.sampled_from(HOSTILE_TEXTS) | st.text(max_size=6), min_size=1, max_size=3
).map("".join)


class Verbatim(str):
    """JSON text that stands in a document as it is, valid or not."""

    __slots__ = ()


def encode(tree):
    """Write JSON, with ``Verbatim`` parts as they are."""
    if isinstance(tree, Verbatim):
        return str(tree)
    if isinstance(tree, dict):
        return "{" + ",".join(f"{json.dumps(k)}:{encode(v)}" for k, v in tree.items()) + "}"
    if isinstance(tree, list):
        return "[" + ",".join(map(encode, tree)) + "]"
    return json.dumps(tree)


def places(tree, path=()):
    """Every path into a JSON document but the document itself."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*path, key))


def at(tree, path):
    for key in path:
        tree = tree[key]
    return tree


def put(tree, path, value):
    at(tree, path[:-1])[path[-1]] = value
    return tree


def renamed(tree, old, new):
    """Rename a group or layer wherever it is mentioned."""
    if isinstance(tree, dict):
        return {(new if k == old else k): renamed(v, old, new) for k, v in tree.items()}
    if isinstance(tree, list):
        return [renamed(value, old, new) for value in tree]
    return new if tree == old else tree


def like(value):
    """Values of the same kind, which a reader may well take."""
    if isinstance(value, str):
        return hostile_texts | st.sampled_from(HOSTILE_NAMES)
    if isinstance(value, bool) or value is None:
        return st.sampled_from((True, False, None, 0, "", "yes"))
    if isinstance(value, (int, float)):
        return st.sampled_from(JSON_NUMBERS).map(Verbatim)
    if isinstance(value, list):
        return st.sampled_from(([], value * 2, value[:1], value[::-1]))
    return st.sampled_from(({}, dict(list(value.items())[:1])))


@st.composite
def damages(draw, document):
    """JSON text: a document with up to three changes, half of them such that it may still load."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.sampled_from((1, 1, 2, 3)))):
        path = draw(st.sampled_from(list(places(document))))
        holder, key, value = at(document, path[:-1]), path[-1], at(document, path)
        how = draw(st.sampled_from(("like", "like", "rename", "delete", "value", "token", "twice")))
        if how == "delete":
            del holder[key]
        elif how == "like":
            holder[key] = draw(like(value))
        elif how == "value":
            holder[key] = draw(json_values)
        elif how == "token":
            holder[key] = Verbatim(draw(st.sampled_from(JSON_TOKENS)))
        elif how == "twice" and isinstance(value, dict) and value:
            again = draw(st.sampled_from(list(value)))
            other = encode(draw(json_values))
            holder[key] = Verbatim(f"{encode(value)[:-1]},{json.dumps(again)}:{other}}}")
        elif how == "rename" and isinstance(key, str):
            document = renamed(document, key, draw(hostile_texts))
    return encode(document)


def strict(text):
    """Parse JSON that every language's parser accepts."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def controls(text):
    """The control characters and exotic line breaks in a text, newlines and tabs aside."""
    kinds = ("Cc", "Zl", "Zp")
    return {c for c in text if unicodedata.category(c) in kinds and c not in "\n\t"}


def check_message(error):
    """Return an error's message, checked to be one short printable line that names source x."""
    message = str(error)
    assert message.startswith("x: ")
    assert controls(message) == set()
    assert "\n" not in message
    assert len(message) < LONGEST_MESSAGE
    return message
