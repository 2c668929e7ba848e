"""The scheme manifest: what it derives from its fields."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from builders import changed
from pytest_autoquant.errors import RecordError
from pytest_autoquant.manifests.records.packed_scores import pack_scores
from pytest_autoquant.manifests.records.scheme_manifest import (
    InteractionRecord,
    SearchRecord,
    SearchStep,
    UniformRecord,
    dump_scheme,
    load_scheme,
)


def test_perplexity_is_the_exponential_of_the_loss(scheme):
    measured = scheme.measured
    assert (measured.perplexity, measured.perplexity_before) == (math.exp(2.0), math.exp(1.5))
    too_large = replace(measured, loss=1e4)
    assert (too_large.perplexity, too_large.perplexity_before) == (math.inf, math.exp(1.5))


def test_manifest_lies_in_the_folder_of_its_checkpoint(scheme):
    assert scheme.path == Path("toy/schemes/mine/scheme_manifest.json")


def test_manifest_of_a_version_without_warnings_is_read(scheme):
    document = json.loads(dump_scheme(scheme))
    for name in ("warnings", "not_checked"):
        del document["export"][name]
    expected = replace(scheme, export=replace(scheme.export, warnings=(), not_checked=None))
    assert load_scheme(json.dumps(document), source="x") == expected


def test_manifest_of_a_version_without_comparisons_is_read(scheme):
    document = json.loads(dump_scheme(scheme))
    for name in ("search", "interaction", "uniform"):
        assert document.pop(name) is None
    for name in ("standard_error", "caption_kl", "caption_predictions"):
        del document["measured"][name]
    assert all(group.pop("kl") is None for group in document["groups"])
    found = load_scheme(json.dumps(document), source="x")
    assert (found, found.measured.by_caption) == (scheme, ())


def test_divergence_of_each_caption_is_read_back(scheme):
    by_caption = replace(
        scheme.measured,
        kl=0.075,
        caption_kl=pack_scores([0.25, 0.5]),
        caption_predictions=(5, 5),
    )
    found = load_scheme(dump_scheme(replace(scheme, measured=by_caption)), source="x")
    assert found.measured.by_caption == (0.25, 0.5)


@pytest.mark.parametrize(
    ("part", "values", "said"),
    [
        ("scheme", {"candidates": ("wint4_afp16",)}, "group 'a' has scores of wfp8_afp8, "),
        (
            "measured",
            {"caption_kl": pack_scores([0.25, 0.5]), "caption_predictions": (5, 5)},
            "measured.caption_kl gives 0.075 per token, measured.kl is 0.001",
        ),
        (
            "measured",
            {"caption_kl": "AAAA", "caption_predictions": (5, 5)},
            "measured.caption_kl must be base64 of 2 numbers of fp32",
        ),
        ("allocation", {"score": 0.25}, "in groups is 0.5, but allocation.score says 0.25"),
        ("allocation", {"fraction_of_groups": 1.0}, "is 0.5, but allocation.fraction_of_groups"),
        ("allocation", {"fraction_of_weights": 1.0}, "allocation.fraction_of_weights says 1.0"),
    ],
)
def test_copies_of_a_fact_that_disagree_are_refused(scheme, part, values, said):
    assert load_scheme(dump_scheme(scheme), source="x") == scheme
    with pytest.raises(RecordError, match=re.escape(said)):
        load_scheme(dump_scheme(changed(scheme, part, **values)), source="x")


@pytest.fixture
def compared(scheme):
    """The scheme, of a measured KL of 0.001 at its bits, with all that it is compared with."""
    bits = scheme.allocation.effective_bits
    steps = [(bits - 1, 0.003, False), (bits + 1, 0.0005, True), (bits, 0.001, True)]
    alone = [0.0005 if group.format else None for group in scheme.groups]
    total = sum(kl for kl in alone if kl)
    return replace(
        scheme,
        groups=tuple(replace(g, kl=kl) for g, kl in zip(scheme.groups, alone, strict=True)),
        interaction=InteractionRecord(sum_kl=total, ratio=0.001 / total),
        uniform=UniformRecord(
            kl={"wfp8_afp8": 0.004, "wint8_afp16": 0.003, "wint4_afp16": None},
            candidate="wint8_afp16",
            difference=0.001 - 0.003,
        ),
        search=SearchRecord(
            limit=0.001,
            steps=tuple(
                SearchStep(effective_bits=bits, score=1.0, kl=kl, passed=passed)
                for bits, kl, passed in steps
            ),
            num_selections=3,
            num_unmeasured=0,
        ),
    )


@pytest.mark.parametrize(
    ("part", "values", "said"),
    [
        ("interaction", {"sum_kl": 0.25}, "but interaction.sum_kl says 0.25"),
        ("interaction", {"ratio": 0.25}, "but interaction.ratio says 0.25"),
        ("uniform", {"candidate": "wfp8_afp8"}, "is 0.003, but that of wfp8_afp8 says 0.004"),
        ("uniform", {"difference": 0.25}, "but uniform.difference says 0.25"),
        ("allocation", {"effective_bits": 1.5}, "but allocation.effective_bits says 1.5"),
    ],
)
def test_comparison_that_is_not_of_the_measured_divergence_is_refused(compared, part, values, said):
    assert load_scheme(dump_scheme(compared), source="x") == compared
    with pytest.raises(RecordError, match=re.escape(said)):
        load_scheme(dump_scheme(changed(compared, part, **values)), source="x")
