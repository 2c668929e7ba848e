"""Checkpoint files that are missing, damaged or contradict each other."""

import json
import os
import shutil
import struct

import numpy as np
import pytest
from pytest_autoquant.errors import ExportError
from pytest_autoquant.export import checkpoint_files
from pytest_autoquant.export.checkpoint_files import INDEX, WEIGHTS, read_object, read_tensors
from safetensors.numpy import save_file

FIRST, SECOND = "a.safetensors", "b.safetensors"
TENSORS = {
    "m.weight": np.zeros((2, 3), np.float16),
    "m.weight_scale": np.array([[0.5, 2.0]], np.float32),
    "m.bias": np.zeros(2, np.float32),
}


@pytest.fixture
def folder(tmp_path):
    """A checkpoint of one file."""
    save_file(TENSORS, tmp_path / WEIGHTS)
    return tmp_path


@pytest.fixture
def sharded(tmp_path):
    """A checkpoint of two files and an index; ``m.weight`` is in the first."""
    files = {"m.weight": FIRST, "m.weight_scale": SECOND, "m.bias": SECOND}
    for file in (FIRST, SECOND):
        part = {name: TENSORS[name] for name in files if files[name] == file}
        save_file(part, tmp_path / file)
    write_index(tmp_path, files)
    return tmp_path


def write_index(folder, weight_map):
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def refused(folder, message, read=read_tensors):
    with pytest.raises(ExportError) as error:
        read(folder)
    text = str(error.value)
    assert message in text
    assert text.startswith(str(folder))
    assert "; " in text
    assert len(text) < 5_000


@pytest.mark.parametrize("layout", ["folder", "sharded"])
def test_tensors_have_dtype_shape_and_the_values_of_scales(request, layout):
    tensors = read_tensors(request.getfixturevalue(layout))
    assert {name: (each.dtype, each.shape) for name, each in tensors.items()} == {
        "m.weight": ("F16", (2, 3)),
        "m.weight_scale": ("F32", (1, 2)),
        "m.bias": ("F32", (2,)),
    }
    assert tensors["m.weight_scale"].values.tolist() == [0.5, 2.0]
    assert tensors["m.weight"].values is tensors["m.bias"].values is None
    assert (tensors["m.weight"].module, tensors["m.weight"].kind) == ("m", "weight")


PLAIN_NAME = "must be the name of a .safetensors file in the same folder"


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("../model.safetensors", PLAIN_NAME),
        ("/etc/model.safetensors", PLAIN_NAME),
        ("x\\..\\model.safetensors", PLAIN_NAME),
        ("a\0.safetensors", PLAIN_NAME),
        ("a\x1b[2J.safetensors", PLAIN_NAME),
        ("config.json", PLAIN_NAME),
        ("", PLAIN_NAME),
        (7, PLAIN_NAME),
        ("a" * 3000 + ".safetensors", "no such file"),
        ("missing.safetensors", "missing.safetensors: no such file"),
        (SECOND, f"maps m.weight to {SECOND}, which does not hold it"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_index_must_map_tensors_to_files_that_hold_them(sharded, file, message):
    write_index(sharded, {"m.weight": file, "m.weight_scale": SECOND, "m.bias": SECOND})
    refused(sharded, message)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (
            {"m.weight": SECOND, "m.weight_scale": FIRST, "m.bias": SECOND},
            f"maps m.weight to {SECOND}, but {FIRST} holds it",
        ),
        ({"m.weight": FIRST, "m.bias": SECOND}, f"to no file, but {SECOND} holds it"),
        (
            {"m.weight": FIRST, "m.weight_scale": SECOND, "m.bias": SECOND, "x": FIRST},
            f"maps x to {FIRST}, which does not hold it",
        ),
        *((each, "weight_map must be an object") for each in (None, {}, [], "x", 7)),
    ],
)
def test_index_that_contradicts_the_files_is_refused(sharded, weight_map, message):
    write_index(sharded, weight_map)
    refused(sharded, message)


def test_second_file_without_an_index_is_refused(folder):
    shutil.copy(folder / WEIGHTS, folder / FIRST)
    refused(folder, f"holds {FIRST} but no {INDEX}")


def test_weights_may_be_a_link_out_of_the_folder(folder, tmp_path_factory):
    """A hub cache stores files as links."""
    blob = shutil.move(folder / WEIGHTS, tmp_path_factory.mktemp("blobs") / "blob")
    (folder / WEIGHTS).symlink_to(blob)
    assert set(read_tensors(folder)) == set(TENSORS)


@pytest.mark.parametrize("name", [WEIGHTS, INDEX])
@pytest.mark.parametrize("kind", ["missing", "pipe", "folder", "broken link"])
def test_anything_but_a_file_is_refused(folder, name, kind):
    (folder / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(folder / name)
    elif kind == "folder":
        (folder / name).mkdir()
    elif kind == "broken link":
        (folder / name).symlink_to("missing")
    elif name == INDEX:
        assert set(read_tensors(folder)) == set(TENSORS)
        return
    refused(folder, f"{name}: no such file; give a complete folder")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b'{"architectures": ["Qwen3VL', "not valid JSON"),
        (b'{"a": NaN}', "not valid JSON"),
        (b'{"a": -Infinity}', "not valid JSON"),
        (b'{"a": "\\ud800"}', "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "must hold a JSON object"),
        (b"null", "must hold a JSON object"),
    ],
    ids=lambda value: ascii(value)[:24],
)
def test_json_that_is_not_an_object_is_refused(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    refused(path, message, read_object)


def test_json_above_the_limit_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    path.write_text("{}" + " " * 99)
    monkeypatch.setattr(checkpoint_files, "_MAX_JSON_BYTES", 100)
    refused(path, "larger than 100 bytes", read_object)


def with_entry(**changes):
    """Change the header's entry of ``m.weight``."""

    def damage(content):
        begin = 8 + struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8:begin])
        header["m.weight"].update(changes)
        start = json.dumps(header).encode()
        return struct.pack("<Q", len(start)) + start + content[begin:]

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:7],
        lambda content: content[:100],
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: b"\xff" * 8 + content[8:],
        with_entry(dtype="F3"),
        with_entry(shape=[2, 4]),
        with_entry(shape=[-2, -3]),
        with_entry(data_offsets=[2**60, 2**60 + 12]),
    ],
    ids=[
        "empty",
        "no header",
        "half a header",
        "a byte short",
        "a byte long",
        "header of 2**64 bytes",
        "dtype",
        "shape",
        "negative shape",
        "offsets",
    ],
)
def test_damaged_safetensors_file_is_refused(folder, damage):
    path = folder / WEIGHTS
    path.write_bytes(damage(path.read_bytes()))
    refused(folder, f"{WEIGHTS}: not a valid safetensors file: ")


def test_scale_with_more_dimensions_than_numpy_has_is_refused(folder):
    save_file({"m.weight_scale": np.ones((1, 2), np.float32)}, folder / WEIGHTS)
    content = (folder / WEIGHTS).read_bytes()
    begin = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:begin])
    header["m.weight_scale"]["shape"] = [*[1] * 70, 2]
    start = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(start)) + start + content[begin:])
    refused(folder, "not a valid safetensors file")
