"""Every internal name of ModelOpt that the package uses still does what it is used for.

A failure here after an upgrade of ModelOpt means: correct
``pytest_autoquant.modelopt_support.private_api``, then set its ``CHECKED_VERSION``.
"""

import ast
import io
from pathlib import Path

import modelopt
import modelopt.torch.quantization as mtq
import pytest
import pytest_autoquant
import torch
from pytest_autoquant.formats.quantizer import QuantizerAttributes
from pytest_autoquant.modelopt_support.private_api import (
    CHECKED_VERSION,
    cuda_extension_loaders,
    export_algorithm,
    exported_linear,
    has_nvfp4_kernel,
    named_quantizers,
    reduced_range,
    searched_groups,
    serialized,
    tensor_quantizer,
    validate_config,
)
from pytest_autoquant.modelopt_support.quiet import quiet
from torch import nn

WIDTH = 16


def quantizer(**cfg):
    return tensor_quantizer(QuantizerAttributes.of(cfg))


class Block(nn.Module):
    """A chain of linears with the names that ModelOpt's grouping rules look for."""

    def __init__(self):
        super().__init__()
        for name in ("q_proj", "k_proj", "o_proj"):
            setattr(self, name, nn.Linear(WIDTH, WIDTH, bias=False))

    def forward(self, x):
        return self.o_proj(self.q_proj(x) + self.k_proj(x))


@pytest.fixture(scope="module")
def searched():
    """A model after a gradient search with one format, and the state of the search."""
    torch.manual_seed(0)
    model = nn.Sequential(Block())
    batches = [torch.randn(4, WIDTH) for _ in range(2)]
    with quiet():
        return mtq.auto_quantize(
            model,
            constraints={"effective_bits": 16.0},
            quantization_formats=[{**mtq.INT8_DEFAULT_CFG, "effective_bits": 8.0}],
            data_loader=batches,
            forward_step=lambda module, batch: module(batch),
            loss_func=lambda output, batch: output.square().sum(),
            num_calib_steps=2,
            num_score_steps=2,
            method="gradient",
            verbose=False,
        )


def imported_names(path):
    """Yield what a module imports, as dotted names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            parent = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            yield from (f"{parent}{alias.name}" for alias in node.names)


def test_other_modules_import_only_what_modelopt_documents():
    package = Path(pytest_autoquant.__file__).parent
    imported = {
        name
        for path in package.rglob("*.py")
        if path.name != "private_api.py"
        for name in imported_names(path)
        if name.split(".")[0] == "modelopt"
    }
    assert imported == {
        "modelopt",
        "modelopt.torch.quantization",
        "modelopt.torch.export.export_hf_checkpoint",
    }


def test_installed_release_is_the_one_that_was_checked():
    minor = CHECKED_VERSION.rpartition(".")[0]
    assert modelopt.__version__.startswith(f"{minor}."), (
        f"modelopt_support/private_api.py was checked on {CHECKED_VERSION}, "
        f"{modelopt.__version__} is installed"
    )


def test_quantizer_without_a_range_uses_the_tensors_own():
    weight = torch.tensor([[-0.9, 0.3], [0.5, 2.0]])
    built = quantizer(num_bits=4, axis=None, effective_bits=4.0)
    scale = 2.0 / 7
    assert built.is_enabled
    assert built.maxbound == 7
    torch.testing.assert_close(built(weight), (weight / scale).round() * scale)


def test_quantizer_uses_the_range_it_is_given_until_it_is_disabled():
    built = quantizer(num_bits=8, axis=None)
    built.amax = torch.tensor(127.0)
    values = torch.tensor([1.4, 300.0])
    assert built(values).tolist() == [1.0, 127.0]
    assert built.amax.item() == 127
    assert built.extra_repr().startswith("8 bit fake per-tensor amax=1.27e+02")
    built.disable()
    assert not built.is_enabled
    assert built(values).tolist() == values.tolist()
    built.enable()
    assert built.is_enabled


@pytest.mark.parametrize(
    ("axis", "expected"), [(None, 4.0), (-1, [[[1.0, 4.0, 2.0]]]), (2, [[[1.0, 4.0, 2.0]]])]
)
def test_range_per_channel_is_reduced_to_the_quantizers_axis(axis, expected):
    assert reduced_range(torch.tensor([[[1.0, 4.0, 2.0]]]), axis).tolist() == expected


def test_quantizers_and_export_algorithm_of_a_quantized_model():
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH))
    assert export_algorithm(model) is None
    with quiet():
        mtq.quantize(model, mtq.FP8_DEFAULT_CFG, lambda m: m(torch.ones(2, WIDTH)))
    enabled = {name: each.is_enabled for name, each in named_quantizers(model)}
    assert enabled == {
        "0.input_quantizer": True,
        "0.weight_quantizer": True,
        "0.output_quantizer": False,
    }
    assert export_algorithm(model) == "FP8"
    tensors = exported_linear(model[0])
    assert {name: str(tensor.dtype) for name, tensor in tensors.items()} == {
        "weight": "torch.float8_e4m3fn",
        "bias": "torch.float32",
        "weight_scale": "torch.float32",
        "input_scale": "torch.float32",
    }


def test_config_is_validated():
    validate_config({"quant_cfg": [], "algorithm": "max", "effective_bits": 4.5})
    with pytest.raises(ValueError, match="num_bits must be a positive integer"):
        validate_config({"quant_cfg": [{"quantizer_name": "*", "cfg": {"num_bits": -3}}]})


def test_searched_groups_have_members_a_raw_score_and_quantizers_to_activate(searched):
    model, state = searched
    groups = {group.modules: group for group in searched_groups(model)}
    assert set(groups) == {("0.q_proj", "0.k_proj"), ("0.o_proj",)}
    recorded = {
        tuple(stats["module_names"]): max(stats["scores"])
        for stats in state["candidate_stats"].values()
    }
    assert {members: group.score for members, group in groups.items()} == recorded
    assert min(recorded.values()) > 0
    for group in groups.values():
        group.activate()
    enabled = {name for name, each in named_quantizers(model) if each.is_enabled}
    assert enabled == {
        f"0.{linear}.{kind}_quantizer"
        for linear in ("q_proj", "k_proj", "o_proj")
        for kind in ("weight", "input")
    }


def test_search_state_is_read_back_without_unpickling_code(searched):
    _, state = searched
    loaded = torch.load(io.BytesIO(serialized(state)), weights_only=True)
    assert loaded["candidate_stats"].keys() == state["candidate_stats"].keys()
    assert loaded["best"]["score"] == state["best"]["score"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without CUDA")
def test_without_cuda_no_extension_loads_and_there_is_no_triton_kernel(monkeypatch):
    assert has_nvfp4_kernel() is False
    assert list(cuda_extension_loaders()) == ["cuda_ext", "cuda_ext_fp8", "cuda_ext_mx"]
    for load in cuda_extension_loaders().values():
        monkeypatch.delattr(load, "extension", raising=False)  # what an earlier call returned
        with quiet(), pytest.raises(Exception, match="CUDA is not available"):
            load(raise_if_failed=True)
        with quiet():
            assert load() is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_with_cuda_the_triton_kernel_needs_compute_capability_8_9():
    assert has_nvfp4_kernel() == (torch.cuda.get_device_capability() >= (8, 9))
