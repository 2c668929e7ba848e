"""Hostile text in every free field of a session: reports and terminal show it as text."""

import copy
import json
import re
from dataclasses import replace

import pytest
from builders import results_of, structure_check
from fuzz import HOSTILE_TEXTS, controls, fuzz, hostile_texts, renamed
from hypothesis import given, settings
from pytest_autoquant.manifests.case_result import case_result_of
from pytest_autoquant.manifests.records.outcomes import FailedCase, SkippedCase
from pytest_autoquant.manifests.records.sensitivity_manifest import dump_manifest, load_manifest
from pytest_autoquant.reports.markdown.case_report import LAYERS_JSON, layer_report_markdown
from pytest_autoquant.reports.markdown.session.report import summary_markdown
from pytest_autoquant.reports.report_model import report_model
from pytest_autoquant.reports.terminal_report import terminal_lines

LAYER = "model.language_model.layers.0"
OUR_PICTURES = r"(layer-map|grid-[a-z0-9._-]+)\.svg"


def hostile_documents(manifest, text):
    """The manifest as measured, alias and failed case, every free text replaced, and as it was."""
    for status in ("measured", "alias", "failed"):
        plain = json.loads(dump_manifest(manifest))
        plain["case"] |= {"status": status, "alias_of": "other", "problems": ["p", "q"]}
        hostile = copy.deepcopy(plain)
        hostile["case"] |= {"case_id": text, "alias_of": text, "notes": [text]}
        hostile["case"] |= {"problems": [text, text], "pair": text, "granularity": text}
        hostile["case"] |= {"weight": text, "activation": text, "size": text}
        plain["case"] |= {"notes": ["n"], "size": "odd"}
        plain["dataset"]["size"] = "odd"
        for part in ("model", "dataset", "environment", "run_config", "scheme", "quantization"):
            for key, value in hostile[part].items():
                if isinstance(value, str) and key not in ("weights", "coverage_mode", "cost"):
                    hostile[part][key] = text
        hostile["quantization"]["quant_granularity"]["name"] = text
        hostile["scheme"] |= {"auto_quantize_method": "gradient", "quant_formats": [text]}
        hostile["environment"] |= {"host": text, "user": text, "cuda": text}
        for name in list(hostile["layers"]):
            hostile = renamed(hostile, name, name.replace(LAYER, f"{LAYER}{text}"))
        for name in list(hostile["layer_sensitivity"]):
            hostile = renamed(hostile, name, f"{text}{name}")
        yield tuple(load_manifest(json.dumps(d), source="x") for d in (plain, hostile))


def session_of(manifest, text):
    """Return a session with one of everything, all of it named ``text``."""
    line = case_result_of(manifest)
    structure = {"reason": text, "format_name": text, "digest": text}
    results = results_of(
        line,
        *(
            replace(line, case_id=f"{text}{status}", status=status, problems=(text, text))
            for status in ("measured", "alias", "failed")
        ),
        structure_check(text, text, text, **structure),
        gated={text: text},
        reruns={text: text},
        lost=(text,),
        left_out=[text],
        command=text,
        shard=text,
        write_errors=[text],
    )
    return replace(
        results,  # also where the measured case has the same id
        skips={text: SkippedCase(case_id=text, status=text, reason=text)},
        errors={text: FailedCase(case_id=text, problem=text)},
    )


def shape(page):
    return [[len(row) for row in table] for table in page.tables]


def check_page(render, expected, markdown):
    """Compare a page of hostile text with the same page of plain text."""
    wanted, page = render(expected), render(markdown)
    assert page.tags <= wanted.tags | {"code", "img"}
    assert all(re.fullmatch(OUR_PICTURES, source) for source in page.images)
    assert len(page.links) == len(wanted.links)
    assert all(link.endswith(LAYERS_JSON.replace(".json", ".md")) for link in page.links)
    assert not any(":" in link or link.startswith(("/", "..")) for link in page.links)
    assert shape(page) == shape(wanted)
    assert controls(markdown) == set()


def check_reports(render, manifest, text):
    for documents in hostile_documents(manifest, text):
        check_page(render, *(layer_report_markdown(m, case_result_of(m)) for m in documents))
        sessions = [session_of(m, t) for m, t in zip(documents, ("plain", text), strict=True)]
        check_page(render, *(summary_markdown(report_model(session)) for session in sessions))
        plain, lines = map(terminal_lines, sessions)
        assert controls("".join(lines)) == set()
        assert not any("\n" in line for line in lines)
        assert len(lines) == len(plain)


@pytest.mark.parametrize("text", HOSTILE_TEXTS, ids=lambda text: ascii(text[:14]))
def test_hostile_text_changes_no_report(render, manifest, text):
    check_reports(render, manifest, text)


@pytest.mark.slow
@settings(fuzz, max_examples=12)
@given(text=hostile_texts.filter(lambda text: text.strip() and text.isprintable()))
def test_joined_hostile_texts_change_no_report(render, manifest, text):
    check_reports(render, manifest, text)
