"""Hostile files: refused in our words or written inside the report folder, and shown as text."""

import copy
import json
import re
from dataclasses import replace

import pytest
from fuzz import (
    HOSTILE_TEXTS,
    controls,
    fuzz,
    hostile_texts,
    renamed,
)
from hypothesis import given, settings
from pytest_autoquant.grid.vocabulary import load_vocabulary
from pytest_autoquant.manifests.case_result import case_result_of
from pytest_autoquant.manifests.outcomes import FailedCase, SkippedCase, StructureCheck
from pytest_autoquant.manifests.sensitivity_manifest import dump_manifest, load_manifest
from pytest_autoquant.reports.case_report import LAYERS_JSON, layer_report_markdown
from pytest_autoquant.reports.report_model import report_model
from pytest_autoquant.reports.session_report import summary_markdown
from pytest_autoquant.reports.session_results import SessionResults
from pytest_autoquant.reports.terminal_report import terminal_lines

BUILTIN = load_vocabulary()
LAYER = "model.language_model.layers.0"
MLP = f"{LAYER}.mlp.gate_proj.quant_recipe"
OUR_PICTURES = r"(layer-map|grid-[a-z0-9._-]+)\.svg"


def document_of(manifest):
    return json.loads(dump_manifest(manifest))


# --- pages and the terminal


def hostile_documents(manifest, text):
    """The manifest as measured, alias and failed case, every free text replaced, and as it was."""
    for status in ("measured", "alias", "failed"):
        plain = document_of(manifest)
        plain["case"] |= {"status": status, "alias_of": "other", "problems": ["p", "q"]}
        hostile = copy.deepcopy(plain)
        hostile["case"] |= {"case_id": text, "alias_of": text, "notes": [text]}
        hostile["case"] |= {"problems": [text, text], "pair": text, "granularity": text}
        hostile["case"] |= {"weight": text, "activation": text, "size": text}
        plain["case"] |= {"notes": ["n"], "size": "odd"}
        for part in ("model", "dataset", "environment", "run_config", "scheme", "quantization"):
            for key, value in hostile[part].items():
                if isinstance(value, str) and key not in ("weights", "coverage_mode"):
                    hostile[part][key] = text
        hostile["environment"] |= {"host": text, "user": text, "cuda": text}
        for name in list(hostile["layers"]):
            hostile = renamed(hostile, name, name.replace(LAYER, f"{LAYER}{text}"))
        for name in list(hostile["layer_sensitivity"]):
            hostile = renamed(hostile, name, f"{text}{name}")
        yield tuple(load_manifest(json.dumps(d), source="x") for d in (plain, hostile))


def results_of(manifest, text):
    """A session with one of everything, all of it named ``text``."""
    line = case_result_of(manifest)
    cases = (
        line,
        *(
            replace(line, case_id=f"{text}{status}", status=status, problems=(text, text))
            for status in ("measured", "alias", "failed")
        ),
    )
    structure = StructureCheck(
        pair=text,
        granularity=text,
        status=text,
        reason=text,
        format_name=text,
        effective_bits=8.0,
        digest=text,
    )
    return SessionResults(
        cases={case.case_id: case for case in cases},
        skips={text: SkippedCase(case_id=text, status=text, reason=text)},
        errors={text: FailedCase(case_id=text, problem=text)},
        structures={(text, text): structure},
        gated={text: text},
        reruns={text: text},
        lost=(text,),
        left_out=[text],
        command=text,
        shard=text,
        write_errors=[text],
    )


def shape(page):
    return [[len(row) for row in table] for table in page.tables]


def check_pages(render, manifest, text):
    for plain, hostile in hostile_documents(manifest, text):
        pages = [
            tuple(layer_report_markdown(m, case_result_of(m)) for m in (plain, hostile)),
            *(
                (summary_markdown(report_model(mine)), summary_markdown(report_model(theirs)))
                for mine, theirs in [(results_of(plain, "plain"), results_of(hostile, text))]
            ),
        ]
        for expected, markdown in pages:
            wanted, page = render(expected), render(markdown)
            assert page.tags <= wanted.tags | {"code", "img"}
            assert all(re.fullmatch(OUR_PICTURES, source) for source in page.images)
            assert len(page.links) == len(wanted.links)
            assert all(link.endswith(LAYERS_JSON.replace(".json", ".md")) for link in page.links)
            assert not any(":" in link or link.startswith(("/", "..")) for link in page.links)
            assert shape(page) == shape(wanted)
            assert controls(markdown) == set()


@pytest.mark.parametrize("text", HOSTILE_TEXTS, ids=lambda text: ascii(text[:14]))
def test_hostile_text_leaves_pages_as_they_are(render, manifest, text):
    check_pages(render, manifest, text)


@settings(fuzz, max_examples=12)
@given(text=hostile_texts.filter(lambda text: text.strip() and text.isprintable()))
def test_any_text_leaves_pages_as_they_are(render, manifest, text):
    check_pages(render, manifest, text)


@pytest.mark.parametrize("text", HOSTILE_TEXTS, ids=lambda text: ascii(text[:14]))
def test_the_terminal_gets_one_line_each_and_no_control_character(manifest, text):
    for plain, hostile in hostile_documents(manifest, text):
        lines = terminal_lines(results_of(hostile, text))
        assert controls("".join(lines)) == set()
        assert not any("\n" in line for line in lines)
        assert len(lines) == len(terminal_lines(results_of(plain, "plain")))
