"""The tape as a file, its fingerprint and its size."""

from dataclasses import fields, replace

import pytest
import torch
from builders import calibration_of, ignore_progress, load_tiny
from pytest_autoquant.errors import MeasurementError, WriteError
from pytest_autoquant.scoring.replay.recorder import capture
from pytest_autoquant.scoring.replay.tape import (
    TapeFingerprint,
    check_folder,
    choose_device,
    estimate_bytes,
    load_tape,
    save_tape,
    tape_fingerprint,
)
from safetensors.torch import load_file, save_file

CPU = torch.device("cpu")
LAYER = "model.language_model.layers.3"


@pytest.fixture(scope="module")
def data(tiny):
    return calibration_of(tiny, score_size=12)


@pytest.fixture(scope="module")
def tape(tiny, data):
    return capture(tiny, data, CPU, ignore_progress)


def differing(first, second):
    names = (field.name for field in fields(TapeFingerprint))
    return {name for name in names if getattr(first, name) != getattr(second, name)}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"size": "small"}, set()),
        ({"size": "medium"}, {"captions", "tokens"}),
        ({"batch_size": 1}, {"batch_size", "tokens"}),
        ({"score_size": 16}, {"captions", "tokens", "num_scored"}),
    ],
    ids=["same", "captions", "batch size", "score size"],
)
def test_fingerprint_depends_on_the_batches(tiny, data, options, expected):
    own = tape_fingerprint(tiny, data)
    other = tape_fingerprint(tiny, calibration_of(tiny, **({"score_size": 12} | options)))
    assert differing(own, other) == expected
    assert (own.digest == other.digest) == (not expected)


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"random_seed": 1}, {"model"}), ({"dtype": torch.bfloat16}, {"dtype"})],
)
def test_fingerprint_depends_on_the_model(tiny, data, options, expected):
    other = tape_fingerprint(load_tiny(**options), data)
    assert differing(tape_fingerprint(tiny, data), other) == expected


def test_estimate_is_an_upper_bound(tiny, data, tape):
    assert tape.nbytes <= estimate_bytes(tiny, data) < 2 * tape.nbytes


@pytest.mark.parametrize(
    ("requested", "share_of_free_memory", "expected"),
    [("auto", 0.49, "cuda"), ("auto", 0.51, "cpu"), ("cuda", 2, "cuda"), ("cpu", 0.1, "cpu")],
)
def test_tape_is_on_the_gpu_if_half_of_its_free_memory_is_enough(
    tiny, data, monkeypatch, requested, share_of_free_memory, expected
):
    assert choose_device(requested, tiny, estimate_bytes(tiny, data)) == CPU
    free = int(estimate_bytes(tiny, data) / share_of_free_memory)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
    on_gpu = replace(tiny, device=torch.device("cuda"))
    assert choose_device(requested, on_gpu, estimate_bytes(tiny, data)).type == expected


def test_saved_tape_is_loaded_bit_for_bit(tiny, data, tape, tmp_path):
    path = tmp_path / "new" / "small.tape.safetensors"
    tape = replace(tape, zero_inputs=("a",), zero_gradients=("b", "c"))
    save_tape(tape, path)
    loaded = load_tape(path, tape_fingerprint(tiny, data), CPU)
    for part in ("inputs", "amax", "gradients"):
        first, second = getattr(tape, part), getattr(loaded, part)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
    rest = ("fingerprint", "source", "num_multi_caption_tokens", "non_finite_gradients")
    rest += ("zero_inputs", "zero_gradients")
    assert [getattr(loaded, name) for name in rest] == [getattr(tape, name) for name in rest]
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert f"input/{LAYER}.mlp.down_proj" in load_file(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("captions", "1" * 64), ("format", 2)],
)
def test_tape_with_another_fingerprint_is_refused(tiny, data, tape, tmp_path, field, value):
    path = tmp_path / "other.tape.safetensors"
    save_tape(replace(tape, fingerprint=replace(tape.fingerprint, **{field: value})), path)
    expected = tape_fingerprint(tiny, data)
    with pytest.raises(MeasurementError) as caught:
        load_tape(path, expected, CPU)
    stored, wanted = str(value)[:16], str(getattr(expected, field))[:16]
    assert f"({field} is {stored} instead of {wanted})" in str(caught.value)
    assert "delete it to capture it again" in str(caught.value)


def write_other_safetensors(path):
    save_file({"x": torch.ones(1)}, path)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff" * 64),
        lambda path: path.mkdir(),
        write_other_safetensors,
    ],
    ids=["empty", "bytes", "folder", "other tensors"],
)
def test_file_that_is_not_a_tape_is_refused(tiny, data, tmp_path, write):
    path = tmp_path / "broken.tape.safetensors"
    write(path)
    with pytest.raises(MeasurementError, match="is not a tape of this version"):
        load_tape(path, tape_fingerprint(tiny, data), CPU)


def test_check_folder_creates_an_empty_folder_or_is_refused(tmp_path):
    check_folder(tmp_path / "new" / "tapes")
    assert list((tmp_path / "new" / "tapes").iterdir()) == []
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "tapes"
    with pytest.raises(WriteError) as caught:
        check_folder(folder)
    assert str(caught.value) == (
        f"tape folder {folder}: cannot be written (Not a directory); use another folder with "
        "--aq-tape-dir"
    )


@pytest.mark.parametrize("name", ["file/x.tape.safetensors", f"{'x' * 300}.tape.safetensors"])
def test_tape_that_cannot_be_written_is_refused(tape, tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError) as caught:
        save_tape(tape, tmp_path / name)
    assert str(caught.value).startswith(f"tape {tmp_path / name}: cannot be written (")
    assert str(caught.value).endswith("use another folder with --aq-tape-dir")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
