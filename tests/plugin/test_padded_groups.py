"""A model whose widths the block size does not divide is measured, and the manifest says so."""

from odd_model import HEADS, HIDDEN, INTERMEDIATE, save_odd_model
from pytest_autoquant.manifests.records.sensitivity_manifest import read_manifest


def test_manifest_names_layers_with_padded_groups(project, modelopt):
    folder = save_odd_model(project.path / "odd-model")
    project.runpytest_inprocess(
        "-p",
        "no:cacheprovider",
        "cases/test_sensitivity.py",
        "--aq-device=cpu",
        f"--aq-model={folder}",
        "--aq-pairs=wint8_afp16",
        "--aq-granularities=w_group64",
        "--aq-sizes=small",
        "--aq-effective-bits=9",
    ).assert_outcomes(passed=1)
    (manifest,) = map(read_manifest, project.path.rglob("*_quant_manifest.json"))
    widths = {layer.in_features: layer.padded_to for layer in manifest.layers.values()}
    assert widths == {HIDDEN: 128, HEADS: None, INTERMEDIATE: 256}
    noted = [note for note in manifest.case.notes if "does not divide" in note]
    assert len(noted) == 2
    assert noted[0].endswith("q_proj and 4 more linears: padded to 128")
    assert "width 200 of" in noted[1]
    assert noted[1].endswith("down_proj: padded to 256")
