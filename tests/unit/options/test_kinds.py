"""Kinds of option values: what each accepts, converts to and refuses."""

from pathlib import Path

import pytest
from pytest_autoquant.errors import UsageError
from pytest_autoquant.grid.sharding import Shard
from pytest_autoquant.options.kinds import (
    BITS,
    COUNT,
    DRIFT,
    FLAG,
    NAME,
    NATS,
    PATH,
    SHARD,
    SHARE,
    TEXT,
    TOKENS,
    WHOLE,
    choice,
    names,
)

WEIGHTS = choice("checkpoint", "random")
ANY_NAMES, FIELD_NAMES = names(), names("model", "torch")


@pytest.mark.parametrize(
    ("kind", "raw", "value"),
    [
        (TEXT, "Qwen/Qwen3-VL-4B-Instruct", "Qwen/Qwen3-VL-4B-Instruct"),
        (NAME, "my-finetune_v2.1", "my-finetune_v2.1"),
        (WEIGHTS, "random", "random"),
        (PATH, "data/coco.txt", Path("data/coco.txt")),
        (PATH, "~/reports", Path.home() / "reports"),
        (ANY_NAMES, "wfp8_afp8", ("wfp8_afp8",)),
        (ANY_NAMES, " wfp8_afp8, wint8_aint8 ,", ("wfp8_afp8", "wint8_aint8")),
        (ANY_NAMES, "default\nw_group64", ("default", "w_group64")),
        (ANY_NAMES, ["small", "medium,large"], ("small", "medium", "large")),
        (FIELD_NAMES, "torch,model", ("torch", "model")),
        (FLAG, True, True),
        (FLAG, False, False),
        (FLAG, "yes", True),
        (FLAG, "TRUE", True),
        (FLAG, "on", True),
        (FLAG, "1", True),
        (FLAG, "off", False),
        (FLAG, "0", False),
        (FLAG, "", False),
        (COUNT, "1", 1),
        (COUNT, 512, 512),
        (TOKENS, "2", 2),
        (WHOLE, "0", 0),
        (WHOLE, 2**63 - 1, 2**63 - 1),
        (BITS, "16", 16.0),
        (BITS, 4.5, 4.5),
        (SHARE, "0", 0.0),
        (SHARE, 1, 1.0),
        (DRIFT, "5e-3", 0.005),
        (NATS, "0.02", 0.02),
        (DRIFT, 12.5, 12.5),
        (SHARD, "1/1", Shard(index=1, count=1)),
        (SHARD, "3/12", Shard(index=3, count=12)),
        (SHARD, "01/02", Shard(index=1, count=2)),
    ],
)
def test_value_is_converted(kind, raw, value):
    converted = kind.parse(raw, "--aq-x")
    assert converted == value
    assert type(converted) is type(value)


REFUSED = {
    NAME: ["", "A", "a b", "a/b", "..", "ft.", "ft ", "-a", "con", "nul.txt", "com1", "a" * 121],
    WEIGHTS: ["", "Random", "checkpoint,random"],
    PATH: ["", " ", "~no-such-user/reports"],
    ANY_NAMES: ["", " , ", []],
    FIELD_NAMES: ["pytorch", "torch,pytorch", ["model", "gpu"]],
    FLAG: ["perhaps", "2", "none"],
    COUNT: ["0", "-4", "2.5", "many", "", True, 1.0, "9" * 5000],
    TOKENS: ["1", "0", "many"],
    WHOLE: ["-1", "0.5", str(2**63)],
    BITS: ["0", "16.01", "nan", "inf", "-1", "eight", ""],
    SHARE: ["1.01", "-0.1", "nan", "90%"],
    NATS: ["0", "-1", "nan", "inf", "0.1 nats"],
    DRIFT: ["-0.01", "inf", "nan", "ten"],
    SHARD: [
        "",
        "1",
        "/",
        "1/",
        "/2",
        "0/2",
        "3/2",
        "0/0",
        "-1/2",
        "+1/2",
        "1/2/3",
        "1 / 2",
        "1/2\n",
        "a/b",
        "1.0/2",
        "1:2",
        "1/1000000",
    ],
}


@pytest.mark.parametrize(
    ("kind", "raw"), [(kind, raw) for kind, values in REFUSED.items() for raw in values]
)
def test_refused_value_is_named_with_its_origin_and_what_is_allowed(kind, raw):
    with pytest.raises(UsageError) as caught:
        kind.parse(raw, "ini option aq_x")
    assert str(caught.value) == f"ini option aq_x: {raw!r} is not allowed; give {kind.allowed}"


@pytest.mark.parametrize(
    ("kind", "allowed"),
    [
        (WEIGHTS, "checkpoint, random"),
        (ANY_NAMES, "names, separated by commas (a list in TOML)"),
        (FIELD_NAMES, "names out of model, torch, separated by commas (a list in TOML)"),
        (BITS, "a number above 0 and up to 16"),
        (WHOLE, "a whole number of at least 0 and at most 9223372036854775807"),
    ],
)
def test_message_lists_what_the_kind_allows(kind, allowed):
    assert kind.allowed == allowed
