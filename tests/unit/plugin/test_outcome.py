"""What a worker tells the controller: plain JSON text that comes back as it was sent."""

import json
from dataclasses import asdict, replace

import pytest
from pytest_autoquant.allocation.scheme import Scheme
from pytest_autoquant.grid.case import SchemeCase
from pytest_autoquant.manifests.outcomes import StructureCheck
from pytest_autoquant.manifests.scheme_manifest import (
    load_scheme,
)
from pytest_autoquant.manifests.sensitivity_manifest import load_manifest
from pytest_autoquant.modelopt_support.status import Status, Support
from pytest_autoquant.plugin.outcome import (
    Message,
    error_message,
    kept_message,
    load_message,
    manifest_message,
    scheme_message,
    skip_message,
    structure_message,
)

CASE = "toy/wint4_aint8/a_per_token_dynamic/small/gradient"
REFUSED = Support(status=Status.UNSUPPORTED, reason="ValueError: größe | <b>\n\ud800")
STRUCTURE = StructureCheck(
    pair="p",
    granularity="g",
    status="supported",
    reason="",
    format_name="F",
    effective_bits=4.25,
    digest="d",
)


@pytest.fixture
def messages(findings, manifest):
    """One of each kind."""
    return {
        "manifest": manifest_message(manifest),
        "kept": kept_message(findings.case),
        "skip": skip_message(findings.case, REFUSED, 4.125),
        "error": error_message(findings.case, "out of memory"),
        "structure": structure_message(STRUCTURE),
    }


def test_a_message_says_what_kind_it_is(messages):
    assert {name: message.kind for name, message in messages.items()} == {
        name: name for name in messages
    }


def test_every_message_comes_back_as_it_was_sent(messages):
    for message in messages.values():
        assert load_message(message.dump()) == message


def test_every_message_is_strict_json_in_ascii(messages):
    for message in messages.values():
        json.loads(message.dump(), parse_constant=pytest.fail)
        assert message.dump().isascii()


def test_a_manifest_arrives_whole(messages, manifest):
    text = load_message(messages["manifest"].dump()).body
    assert load_manifest(text, source="the worker") == manifest


def test_the_other_messages_carry_the_fields_of_their_line(messages):
    assert {name: messages[name].body for name in ("kept", "skip", "error", "structure")} == {
        "kept": {"case_id": CASE},
        "skip": {
            "case_id": CASE,
            "status": "unsupported",
            "reason": REFUSED.reason,
            "effective_bits": 4.125,
        },
        "error": {"case_id": CASE, "problem": "out of memory"},
        "structure": asdict(STRUCTURE),
    }


def test_why_a_case_ran_again_and_its_tolerances_travel_with_it(messages):
    sent = replace(
        messages["manifest"], rerun="torch 2.10 -> 2.11", tolerances={"group": 0.5, "selected": 3}
    )
    found = load_message(sent.dump())
    assert (found.rerun, found.tolerances) == (
        "torch 2.10 -> 2.11",
        {"group": 0.5, "selected": 3},
    )


def test_a_message_has_neither_unless_it_is_given_them(messages):
    assert {(message.rerun, message.tolerances) for message in messages.values()} == {(None, None)}


def test_a_tolerance_that_is_no_json_arrives_as_something_that_the_gate_refuses():
    sent = Message(kind="error", body="", tolerances={"group": {0.1}})
    assert not isinstance(load_message(sent.dump()).tolerances["group"], (int, float))


# Schemes


@pytest.fixture
def scheme_case(findings):
    scheme = Scheme(name="mine", candidates=("wint4_aint8",), measure="effective_bits", amount=8.0)
    return SchemeCase(
        model="toy", scheme=scheme, candidates=(findings.case.combination,), size="small"
    )


def test_a_derived_scheme_arrives_whole(derived):
    message = scheme_message(derived)
    assert message.kind == "scheme"
    json.loads(message.dump(), parse_constant=pytest.fail)
    assert message.dump().isascii()
    found = load_message(message.dump())
    assert found == message
    assert load_scheme(found.body, source="the worker") == derived


def test_a_scheme_that_cannot_run_or_failed_is_carried_by_its_own_id(scheme_case):
    assert skip_message(scheme_case, REFUSED).body == {
        "case_id": "toy/schemes/mine/small",
        "status": "unsupported",
        "reason": REFUSED.reason,
        "effective_bits": None,
    }
    assert error_message(scheme_case, "out of memory").body == {
        "case_id": "toy/schemes/mine/small",
        "problem": "out of memory",
    }
