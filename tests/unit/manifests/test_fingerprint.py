"""Fingerprints: which inputs make two measurements differ."""

import re

import pytest
from builders import changed
from pytest_autoquant import __version__
from pytest_autoquant.manifests.fingerprint import (
    HARNESS_VERSION,
    MEASUREMENT_VERSION,
    Difference,
    Fingerprint,
    differences,
    fingerprint_of,
)


def test_fingerprint_holds_the_inputs_in_the_manifest(manifest):
    assert fingerprint_of(manifest) == Fingerprint(
        model="d" * 64,
        commit=None,
        dtype="float32",
        device="cpu",
        captions="c" * 64,
        tokens=manifest.dataset.tokens_sha256,
        config=manifest.quantization.digest,
        method="gradient",
        engine="modelopt",
        score_size=3,
        modelopt="0.47.0",
        torch="2.11.0",
        transformers="5.14.0",
        harness="0.1.0",
    )


@pytest.mark.parametrize(
    ("field", "part", "values"),
    [
        ("model", "model", {"digest": "e" * 64}),
        ("tokens", "dataset", {"tokens_sha256": "e" * 64}),
        ("score_size", "dataset", {"num_score_samples": 2}),
        ("harness", "environment", {"harness": "0.2.0"}),
    ],
)
def test_changed_input_is_a_difference(manifest, field, part, values):
    before, after = fingerprint_of(manifest), fingerprint_of(changed(manifest, part, **values))
    (value,) = values.values()
    assert differences(before, after) == (
        Difference(field=field, before=str(getattr(before, field)), after=str(value)),
    )


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("model", {"id": "elsewhere/toy"}),
        ("dataset", {"name": "renamed.txt", "batch_size": 16, "num_calib_batches": 1}),
        ("case", {"status": "alias", "alias_of": "another case", "notes": ()}),
        ("run_config", {"batch_size": 16, "engine_reason": "asked for", "seed": 3}),
        ("run_config", {"effective_bits": 6.0, "score_size": 128}),
        ("environment", {"python": "3.12.0", "platform": "Darwin arm64", "cuda": "12.8"}),
        ("environment", {"device_name": "another CPU", "host": "here", "user": "me"}),
    ],
)
def test_field_that_changes_no_score_is_not_a_difference(manifest, part, values):
    assert fingerprint_of(changed(manifest, part, **values)) == fingerprint_of(manifest)


@pytest.mark.parametrize(
    ("before", "after", "difference"),
    [
        ("0.1.0+m1", "0.2.0+m1", ""),
        ("0.1.0+m1", "0.1.0+m2", "harness m1 -> m2"),
        ("0.1.0+m1", "0.1.0+m12", "harness m1 -> m12"),
        ("0.1.0+de4aeb67", "0.1.0+m1", "harness 0.1.0+de4aeb67 -> m1"),
        ("0.1.0+de4aeb67", "0.1.0+bf638248", "harness 0.1.0+de4aeb67 -> 0.1.0+bf638248"),
        ("0.1.0+de4aeb67", "0.1.0+de4aeb67", ""),
    ],
)
def test_only_the_measurement_version_of_the_harness_counts(manifest, before, after, difference):
    first, second = (changed(manifest, "environment", harness=text) for text in (before, after))
    found = differences(fingerprint_of(first), fingerprint_of(second))
    assert "; ".join(map(str, found)) == difference


def test_manifests_record_package_and_measurement_version(manifest):
    assert f"{__version__}+m{MEASUREMENT_VERSION}" == HARNESS_VERSION
    current = changed(manifest, "environment", harness=HARNESS_VERSION)
    assert re.fullmatch(r"m[1-9]\d*", fingerprint_of(current).harness)


@pytest.mark.parametrize("version", ["2.11.0+cpu", "2.11.0+cu128"])
def test_builds_of_one_torch_version_are_equal(manifest, version):
    build = changed(manifest, "environment", torch=version)
    assert fingerprint_of(build) == fingerprint_of(manifest)


def test_token_ids_that_an_older_manifest_does_not_record_are_an_unknown_difference(manifest):
    older = changed(manifest, "dataset", tokens_sha256=None)
    (found,) = differences(fingerprint_of(older), fingerprint_of(manifest))
    assert str(found) == f"tokens unknown -> {manifest.dataset.tokens_sha256[:16]}"
    assert not found.is_known
    (known,) = differences(
        fingerprint_of(manifest),
        fingerprint_of(changed(manifest, "dataset", tokens_sha256="e" * 64)),
    )
    assert known.is_known


def test_commits_are_compared_where_both_are_recorded(manifest):
    unrecorded, one, other = (
        fingerprint_of(changed(manifest, "model", commit=commit))
        for commit in (None, "1" * 40, "2" * 40)
    )
    assert differences(unrecorded, one) == differences(one, unrecorded) == ()
    assert differences(one, one) == ()
    (found,) = differences(one, other)
    assert str(found) == f"commit {'1' * 16} -> {'2' * 16}"


def test_token_ids_of_other_captions_are_not_compared(manifest):
    other = changed(manifest, "dataset", sha256="e" * 64, tokens_sha256="f" * 64)
    (found,) = differences(fingerprint_of(manifest), fingerprint_of(other))
    assert found.field == "captions"


def test_differences_are_in_field_order(manifest):
    after = changed(manifest, "environment", harness="0.2.0", device="cuda")
    after = changed(after, "model", digest="e" * 64)
    found = differences(fingerprint_of(manifest), fingerprint_of(after))
    assert [difference.field for difference in found] == ["model", "device", "harness"]


def test_difference_shows_old_and_new_value_with_short_digests():
    assert str(Difference(field="torch", before="2.10", after="2.11")) == "torch 2.10 -> 2.11"
    digests = Difference(field="model", before="a" * 64, after="b" * 64)
    assert str(digests) == f"model {'a' * 16} -> {'b' * 16}"
