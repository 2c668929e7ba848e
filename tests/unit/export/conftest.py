"""The embedded model, loaded once, and exports by ModelOpt, made once per recipe."""

import pytest
import torch
from builders import load_tiny
from edited_export import EditedExport, export_embedded
from pytest_autoquant.calibration.captions import load_captions, load_held_out
from pytest_autoquant.export.held_out import HeldOut
from scheme_model import batches_of, open_bench


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny():
    """The embedded Qwen3-VL in fp32."""
    return load_tiny()


@pytest.fixture(scope="module")
def bench():
    """A runner that measures the embedded model."""
    return open_bench()


@pytest.fixture(scope="module")
def held(bench):
    """What the runner measures on the built-in held-out captions."""
    return HeldOut(bench, load_held_out(None))


@pytest.fixture(scope="session")
def calibration(tiny):
    return batches_of(tiny, load_captions(None, "small"), 4)


@pytest.fixture(scope="session")
def held_out():
    return load_held_out(None)


@pytest.fixture(scope="session")
def held_out_batches(tiny, held_out):
    return batches_of(tiny, held_out, 12)


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Return the folder of an export, by recipe and embedded model."""
    folders = {}

    def folder_of(recipe, model="tiny-qwen3-vl"):
        if (recipe, model) not in folders:
            folder = tmp_path_factory.mktemp(recipe)
            folders[recipe, model] = export_embedded(folder, model, recipe)
        return folders[recipe, model]

    return folder_of


@pytest.fixture
def edited(exported, tmp_path):
    """Return an export to be edited, by recipe and embedded model."""

    def edit(recipe, model="tiny-qwen3-vl"):
        return EditedExport(exported(recipe, model), tmp_path / recipe)

    return edit
