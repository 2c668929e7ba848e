"""Strict YAML: what is refused, and messages that name the file, the key and the value."""

from typing import Annotated

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import model_validator
from pytest_autoquant.errors import UsageError
from pytest_autoquant.formats.strict_yaml import (
    Name,
    StrictMapping,
    checked,
    is_integer,
    one_of,
    read_yaml,
    refuse,
    validated,
)


class Item(StrictMapping):
    size: Annotated[int, checked(is_integer, "must be an integer")] = 0


class Document(StrictMapping):
    name: Name
    color: Annotated[str, one_of(("red", "blue"))] = "red"
    is_new: bool = False
    tags: list[str] = []  # noqa: RUF012 - pydantic copies it
    item: Item = Item()

    @model_validator(mode="after")
    def check(self):
        if self.is_new and self.color == "blue":
            refuse("is_new and color blue exclude each other")
        return self


@pytest.fixture
def read(tmp_path):
    def read_text(text):
        path = tmp_path / "mine.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode(errors="surrogatepass"))
        return read_yaml(path, Document)

    return read_text


def test_document_is_read_with_its_defaults(read):
    document = read("# comment\nname: a_1\ntags: [x, 'y']\n")
    assert (document.name, document.color, document.tags) == ("a_1", "red", ["x", "y"])
    assert read("name: a\nitem: {size: 0x10}\n").item.size == 16


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b\n", "key 'name' is written twice (line 2, column 1)"),
        ("item: {1: a, 0x1: b}\n", "key 1 is written twice (line 1, column 14)"),
        ("item: {~: a, null: b}\n", "key null is written twice (line 1, column 14)"),
        ("tags: !!set {a, a}\n", "key 'a' is written twice (line 1, column 17)"),
        ("&x [*x]\n", "alias 'x' is not allowed; repeat the value (line 1, column 5)"),
        ("<<: {name: a}\n", "merge key << is not allowed; write the keys out (line 1, column 1)"),
        ("? [a]\n: b\n", "a key must be text, a number, true, false or null (line 1, column 3)"),
        ("name: [a\n", "while parsing a flow sequence, expected ',' or ']'"),
        ("name: 2024-13-45\n", "ValueError: month must be in 1..12"),
        ("[" * 20_000, "RecursionError: "),
        ("name: '\x1b'\n", "ReaderError: unacceptable character"),
        ("", "must be a mapping with the keys name, color, is_new, tags, item, got null"),
        (
            "nmae: a\n",
            "unknown key 'nmae', key 'name' is missing; allowed: name, color, is_new, tags, item",
        ),
        (
            "1: a\n",
            "unknown key 1, key 'name' is missing; allowed: name, color, is_new, tags, item",
        ),
        ("color: red\n", "key 'name' is missing; allowed: name, color, is_new, tags, item"),
        ("name: 8\n", "name must be text, got 8"),
        ("name: a\ncolor: green\n", "color must be one of red, blue, got 'green'"),
        ("name: a\nis_new: 1\n", "is_new must be true or false, got 1"),
        ("name: a\ntags: b\n", "tags must be a list, got 'b'"),
        ("name: a\ntags: [b, 1]\n", "tags.1 must be text, got 1"),
        ("name: a\nitem: 1\n", "item: must be a mapping with the keys size, got 1"),
        ("name: a\nitem: {price: 1}\n", "item: unknown key 'price'; allowed: size"),
        ("name: a\nitem: {size: true}\n", "item.size must be an integer, got true"),
        ("name: a\nis_new: true\ncolor: blue\n", "is_new and color blue exclude each other"),
    ],
    ids=lambda text: ascii(text[:30]),
)
def test_refusal_names_the_file_the_key_and_the_value(read, tmp_path, text, message):
    with pytest.raises(UsageError) as caught:
        read(text)
    refusal = str(caught.value).removeprefix(f"{tmp_path / 'mine.yaml'}: ")
    assert refusal.removeprefix("is not valid YAML: ").startswith(message)
    assert refusal.isprintable()
    assert len(refusal) < 500


@pytest.mark.parametrize("name", ["", "Mine", "a-b", "..", "größe", '"a\\n"', "\u0663"])
def test_name_that_is_unsafe_in_a_path_is_refused(read, name):
    with pytest.raises(UsageError, match=r": name must (be text|consist of a-z, 0-9 and _ only), "):
        read(f"name: {name}\n")


@pytest.mark.parametrize("value", ["x" * 100_000, "[" + "1, " * 5_000 + "1]"])
def test_long_values_are_cut_in_messages(read, value):
    with pytest.raises(UsageError) as caught:
        read(f"name: a\ncolor: {value}\n")
    assert str(caught.value).endswith("...")
    assert len(str(caught.value)) < 500


def test_file_that_is_not_utf8_or_not_a_file_is_named(read, tmp_path):
    with pytest.raises(UsageError, match=r"mine\.yaml: is not UTF-8 \(byte 7\)$"):
        read(b"name: \xf6\n".replace(b": ", b":  "))
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(UsageError, match=r"folder\.yaml: cannot be read: "):
        read_yaml(tmp_path / "folder.yaml", Document)


@settings(
    deadline=None,
    derandomize=True,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    content=st.binary(max_size=60)
    | st.text(max_size=60)
    | st.text(alphabet="name:color-[]{}!&*<?|>%@`'\"#,\n \t\x01~.=_", max_size=60)
)
def test_any_bytes_are_refused_with_a_usage_error(read, content):
    with pytest.raises(UsageError, match=r"mine\.yaml: "):
        read(content)


def test_document_that_is_not_from_a_file_is_refused_with_its_source():
    with pytest.raises(UsageError, match=r"^here: name must be text, got 8$"):
        validated({"name": 8}, Document, source="here")
