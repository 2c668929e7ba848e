"""Checkpoint files that are missing, damaged or contradict each other."""

import json
import os
import shutil
import struct

import numpy as np
import pytest
from pytest_autoquant.errors import ExportError
from pytest_autoquant.export.checkpoint import files as checkpoint_files
from pytest_autoquant.export.checkpoint.files import INDEX, WEIGHTS, read_object, read_tensors
from pytest_autoquant.export.checkpoint.tensor_values import Values
from safetensors.numpy import save_file

FIRST, SECOND = "a.safetensors", "b.safetensors"
TENSORS = {
    "m.weight": np.zeros((2, 3), np.float16),
    "m.weight_scale": np.array([[0.5, 2.0]], np.float32),
    "m.bias": np.zeros(2, np.float32),
}
FILES = {"m.weight": FIRST, "m.weight_scale": SECOND, "m.bias": SECOND}


@pytest.fixture
def folder(tmp_path):
    """A checkpoint of one file."""
    save_file(TENSORS, tmp_path / WEIGHTS)
    return tmp_path


@pytest.fixture
def sharded(tmp_path):
    """A checkpoint of two files and an index."""
    for file in (FIRST, SECOND):
        save_file({name: TENSORS[name] for name in FILES if FILES[name] == file}, tmp_path / file)
    write_index(tmp_path, FILES)
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
    assert tensors["m.weight_scale"].values == Values(lowest=0.5, highest=2.0)
    assert tensors["m.weight"].values == tensors["m.bias"].values == Values()
    assert (tensors["m.weight"].module, tensors["m.weight"].kind) == ("m", "weight")


PLAIN_NAME = "must be the name of a .safetensors file in the same folder"


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        *(
            (FILES | {"m.weight": file}, PLAIN_NAME)
            for file in (
                "../model.safetensors",
                "x\\..\\model.safetensors",
                "a\0.safetensors",
                "a\x1b[2J.safetensors",
                "config.json",
                7,
            )
        ),
        (FILES | {"m.weight": "a" * 3000 + ".safetensors"}, "no such file"),
        (FILES | {"m.weight": SECOND}, f"maps m.weight to {SECOND}, which does not hold it"),
        (FILES | {"m.bias": FIRST}, f"maps m.bias to {FIRST}, but {SECOND} holds it"),
        ({"m.weight": FIRST, "m.bias": SECOND}, f"to no file, but {SECOND} holds it"),
        (FILES | {"x": FIRST}, f"maps x to {FIRST}, which does not hold it"),
        *((each, "weight_map must be an object") for each in (None, {}, [])),
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


@pytest.mark.parametrize(
    ("name", "make"),
    [
        (WEIGHTS, lambda path: None),
        (WEIGHTS, os.mkfifo),
        (INDEX, lambda path: path.mkdir()),
        (INDEX, lambda path: path.symlink_to("missing")),
    ],
    ids=["missing", "pipe", "folder", "broken link"],
)
def test_anything_but_a_file_is_refused(folder, name, make):
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    refused(folder, f"{name}: no such file; give a complete folder")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"architectures": ["Qwen3VL', "not valid JSON"),
        (b'{"a": NaN}', "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[]", "must hold a JSON object"),
    ],
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


def with_entry(name, **changes):
    """Change the header's entry of a tensor."""

    def damage(content):
        begin = 8 + struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8:begin])
        header[name].update(changes)
        start = json.dumps(header).encode()
        return struct.pack("<Q", len(start)) + start + content[begin:]

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:7],
        lambda content: content[:-1],
        with_entry("m.weight", dtype="F3"),
        with_entry("m.weight", shape=[2, 4]),
    ],
    ids=["no header", "a byte short", "dtype", "shape"],
)
def test_damaged_safetensors_file_is_refused(folder, damage):
    path = folder / WEIGHTS
    path.write_bytes(damage(path.read_bytes()))
    refused(folder, f"{WEIGHTS}: not a valid safetensors file: ")
