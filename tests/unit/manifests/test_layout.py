"""Where records lie below a report root, and how they are found."""

from dataclasses import replace

import pytest
from builders import changed
from fuzz import HOSTILE_NAMES
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest_autoquant.calibration.sizes import SIZES
from pytest_autoquant.grid.case import METHODS, cases
from pytest_autoquant.grid.vocabulary import load_vocabulary
from pytest_autoquant.manifests.layout import (
    CasePlace,
    case_path,
    find_manifests,
    find_schemes,
    find_unpublished,
    manifest_path,
    scheme_folder,
    state_path,
)

PLACE = CasePlace(
    model="toy",
    pair="wint4_afp16",
    weight="int4",
    activation="fp16",
    granularity="default",
    size="small",
    method="gradient",
)
FOLDER = "toy/weight-int4-act-fp16/default/small"
NAME = "wint4_afp16_autoquant_lm_quant_manifest.json"


def touch(root, *names):
    """Create empty files; return their paths."""
    paths = [root / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return paths


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, f"{FOLDER}/{NAME}"),
        ({"method": "kl_div"}, f"{FOLDER}-kl_div/{NAME}"),
        ({"model": "Qwen/Qwen3-VL"}, f"qwen--qwen3-vl/{FOLDER.removeprefix('toy/')}/{NAME}"),
        (
            {"pair": "awq"},
            "toy/weight-int4-act-fp16-awq/default/small/awq_autoquant_lm_quant_manifest.json",
        ),
    ],
)
def test_names_decide_the_path(values, expected):
    assert manifest_path(replace(PLACE, **values)).as_posix() == expected


@pytest.mark.parametrize(
    "model", ["tmp", "TMP", "summary.md", "summary.json", "schemes.md", "grid-toy-small.svg"]
)
def test_model_named_like_a_file_or_folder_at_the_root_gets_another_folder(model):
    folder = manifest_path(replace(PLACE, model=model)).parts[0]
    assert folder == f"{model.lower()}-model"


def test_every_case_of_the_grid_has_a_folder_of_its_own():
    paths = [
        case_path(case)
        for method in METHODS
        for case in cases(load_vocabulary(), SIZES, model="toy", method=method)
    ]
    assert len({path.parent for path in paths}) == len(paths) == 3 * 3 * 24 * 10


@pytest.mark.parametrize("values", [{}, {"method": "kl_div"}, {"size": "large"}])
def test_manifest_lies_where_its_case_is_looked_for(findings, manifest, values):
    case = replace(findings.case, **values)
    assert changed(manifest, "case", **values).path == case_path(case)


def test_search_state_lies_beside_its_manifest():
    path = manifest_path(PLACE)
    assert state_path(path) == path.with_name("wint4_afp16_autoquant_lm_autoquant_state.pt")


@settings(max_examples=50)
@given(name=st.text(max_size=400) | st.sampled_from(HOSTILE_NAMES))
def test_any_name_gives_safe_path_parts(name):
    check_parts(manifest_path(CasePlace(**dict.fromkeys(CasePlace.__slots__, name))), 5)
    check_parts(scheme_folder(name, name), 3)


def check_parts(path, count):
    assert len(path.parts) == count
    for part in path.parts:
        assert set(part) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-")
        assert part not in (".", "..")
        assert not part.startswith((".", "-"))
        assert len(part) <= 255


def test_manifests_are_found_in_path_order(tmp_path):
    found = touch(tmp_path, f"b/{NAME}", f"a/x/{NAME}", f"c/tmp/{NAME}")
    found += touch(tmp_path, "c/int8_autoquant_lm_default_quant_manifest.json")
    left_out = touch(tmp_path, f"tmp/{NAME}", f"baseline/{NAME}")
    touch(tmp_path, "quant_manifest.json")
    (tmp_path / "folder" / NAME).mkdir(parents=True)
    assert find_manifests(tmp_path) == sorted(found)
    assert find_unpublished(tmp_path) == sorted(left_out)
    assert find_manifests(tmp_path / "missing") == []


def test_schemes_are_found_in_path_order_and_only_in_scheme_folders(tmp_path):
    file = "scheme_manifest.json"
    folders = ("toy/schemes/b", "toy/schemes/a", "big/schemes/c")
    found = touch(tmp_path, *(f"{name}/{file}" for name in folders))
    others = ("schemes/a", "toy/a", "toy/schemes", "x/toy/schemes/a", "toy/schemes/.unfinished")
    touch(tmp_path, "toy/schemes/a/other.json", *(f"{name}/{file}" for name in others))
    assert find_schemes(tmp_path) == sorted(found)
    assert find_schemes(tmp_path / "missing") == []
