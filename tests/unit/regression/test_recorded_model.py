"""Two models of one name: results of the first are never mixed with or replaced by the second's."""

from dataclasses import replace

import pytest
from builders import changed, files_in
from pytest_autoquant.errors import ModelError
from pytest_autoquant.files import write_atomic
from pytest_autoquant.manifests.records.scheme_manifest import dump_scheme
from pytest_autoquant.regression.recorded_model import is_another, recorded_model
from pytest_autoquant.reports.write import write_case

OTHER = "e" * 64


@pytest.mark.parametrize(
    ("values", "is_other"),
    [
        ({"id": "renamed"}, False),
        ({"digest": OTHER}, True),
        ({"digest": OTHER, "dtype": "bfloat16"}, True),  # files do not depend on the dtype
        ({"digest": OTHER, "dtype": "bfloat16", "weights": "random"}, True),
    ],
)
def test_model_of_a_local_folder_is_known_by_its_digest(manifest, values, is_other):
    local = replace(manifest.model, id="toy")
    assert is_another(local, replace(local, **values)) is is_other


@pytest.mark.parametrize("weights", ["checkpoint", "random"])
@pytest.mark.parametrize(
    ("values", "is_other"),
    [
        ({"digest": OTHER}, True),
        ({"digest": OTHER, "dtype": "bfloat16"}, False),  # of the weights as they were loaded
        ({"digest": OTHER, "dtype": "bfloat16", "id": "toy/org-toy"}, True),
    ],
)
def test_digest_of_loaded_weights_is_compared_within_a_dtype(manifest, weights, values, is_other):
    one = replace(manifest.model, weights=weights)
    assert is_another(one, replace(one, **values)) is is_other


def test_manifest_of_another_model_is_not_replaced(tmp_path, manifest):
    path = write_case(tmp_path, manifest)
    written = files_in(tmp_path)
    with pytest.raises(ModelError) as caught:
        write_case(tmp_path, changed(manifest, "model", digest=OTHER))
    name = manifest.path.as_posix()
    assert str(caught.value) == (
        "model toy: the report folder holds results of another model of this name: "
        f"{name} has digest {'d' * 16}, this model has {'e' * 16}; name this model with "
        "--aq-model-name, give another folder with --aq-report-dir, or delete the folder toy if "
        "its results are outdated"
    )
    assert files_in(tmp_path) == written
    path.write_bytes(b"{")
    write_case(tmp_path, changed(manifest, "model", digest=OTHER))  # nothing of a model is lost


def test_model_of_a_name_is_that_of_its_first_readable_manifest(tmp_path, manifest, derived):
    assert recorded_model(tmp_path, "toy") is None
    write_atomic(tmp_path / derived.path, dump_scheme(changed(derived, "model", digest=OTHER)))
    found = recorded_model(tmp_path, "toy")
    assert (found.record.digest, found.manifest) == (OTHER, derived.path.as_posix())
    write_atomic(tmp_path / manifest.path.with_name(f"a{manifest.path.name}"), "{}")
    write_case(tmp_path, manifest)
    assert recorded_model(tmp_path, "toy").record == manifest.model
    assert recorded_model(tmp_path, "other") is None
