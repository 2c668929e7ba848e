"""Fingerprints: what makes two measurements of a case comparable, and what does not."""

from dataclasses import fields, replace

import pytest
from pytest_autoquant.manifests.fingerprint import (
    FINGERPRINT_FIELDS,
    Difference,
    Fingerprint,
    differences,
    fingerprint_of,
)


def changed(manifest, part, **values):
    """Return the manifest with some fields of one of its parts replaced."""
    return replace(manifest, **{part: replace(getattr(manifest, part), **values)})


def test_a_fingerprint_is_what_the_manifest_says_it_was_measured_with(manifest):
    assert fingerprint_of(manifest) == Fingerprint(
        model="d" * 64,
        dtype="float32",
        device="cpu",
        captions="c" * 64,
        config=manifest.quantization.digest,
        method="gradient",
        engine="modelopt",
        score_size=3,
        budget=8.0,
        modelopt="0.47.0",
        torch="2.11.0",
        transformers="5.14.0",
        harness="0.1.0",
    )


def test_the_fields_that_options_can_name_are_those_of_the_fingerprint():
    assert tuple(field.name for field in fields(Fingerprint)) == FINGERPRINT_FIELDS


@pytest.mark.parametrize(
    ("field", "part", "values"),
    [
        ("model", "model", {"digest": "e" * 64}),
        ("dtype", "model", {"dtype": "bfloat16"}),
        ("device", "environment", {"device": "cuda"}),
        ("captions", "dataset", {"sha256": "e" * 64}),
        ("config", "quantization", {"digest": "e" * 64}),
        ("method", "case", {"method": "kl_div"}),
        ("engine", "run_config", {"engine": "replay"}),
        ("score_size", "run_config", {"score_size": 4}),
        ("budget", "run_config", {"effective_bits": 6.0}),
        ("modelopt", "environment", {"modelopt": "0.48.0"}),
        ("torch", "environment", {"torch": "2.12.0"}),
        ("transformers", "environment", {"transformers": "5.15.0"}),
        ("harness", "environment", {"harness": "0.2.0"}),
    ],
)
def test_every_field_tells_two_measurements_apart(manifest, field, part, values):
    before, after = fingerprint_of(manifest), fingerprint_of(changed(manifest, part, **values))
    (value,) = values.values()
    assert differences(before, after) == (
        Difference(field=field, before=str(getattr(before, field)), after=str(value)),
    )


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("model", {"id": "elsewhere/toy"}),
        ("dataset", {"name": "renamed.txt"}),
        ("dataset", {"batch_size": 16, "num_calib_batches": 1}),
        ("case", {"status": "alias", "alias_of": "another case"}),
        ("case", {"notes": ()}),
        ("run_config", {"batch_size": 16}),
        ("run_config", {"engine_reason": "asked for"}),
        ("environment", {"python": "3.12.0", "platform": "Darwin arm64"}),
        ("environment", {"device_name": "another CPU", "cuda": "12.8"}),
        ("environment", {"host": "here", "user": "me"}),
        ("memory", {"peak_rss_bytes": 1}),
    ],
)
def test_what_changes_no_score_is_not_in_the_fingerprint(manifest, part, values):
    assert fingerprint_of(changed(manifest, part, **values)) == fingerprint_of(manifest)


def test_builds_of_one_torch_version_are_the_same(manifest):
    builds = [
        fingerprint_of(changed(manifest, "environment", torch=version))
        for version in ("2.11.0", "2.11.0+cpu", "2.11.0+cu128")
    ]
    assert builds == [builds[0]] * 3


def test_differences_come_in_the_order_of_the_fields(manifest):
    after = changed(manifest, "environment", harness="0.2.0", device="cuda")
    after = changed(after, "model", digest="e" * 64)
    found = differences(fingerprint_of(manifest), fingerprint_of(after))
    assert [difference.field for difference in found] == ["model", "device", "harness"]


def test_a_difference_reads_from_old_to_new_with_long_digests_cut():
    assert str(Difference(field="torch", before="2.10", after="2.11")) == "torch 2.10 -> 2.11"
    digests = Difference(field="model", before="a" * 64, after="b" * 64)
    assert str(digests) == f"model {'a' * 16} -> {'b' * 16}"
