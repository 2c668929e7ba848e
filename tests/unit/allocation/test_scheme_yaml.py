"""The user's schemes as YAML: what valid files define, and what is refused."""

import pytest
from pytest_autoquant.allocation.scheme_yaml import read_scheme
from pytest_autoquant.errors import UsageError

SCHEME = "name: mine\ncandidates: [wfp8_afp8]\n"
BITS = SCHEME + "effective_bits: "
MEASURES = "fraction_of_groups, fraction_of_weights, effective_bits"


@pytest.fixture
def scheme(tmp_path):
    def read(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return read_scheme(path)

    return read


@pytest.mark.parametrize(
    ("measure", "raw", "amount"),
    [
        ("fraction_of_groups", "0.3", 0.3),
        ("fraction_of_groups", "1", 1.0),
        ("fraction_of_weights", "0", 0.0),
        ("effective_bits", "16", 16.0),
        ("effective_bits", "4.5", 4.5),
    ],
)
def test_scheme_is_read_with_its_one_measure(scheme, measure, raw, amount):
    mine = scheme(f"{SCHEME}{measure}: {raw}\n")
    assert (mine.name, mine.candidates) == ("mine", ("wfp8_afp8",))
    assert (mine.measure, mine.amount) == (measure, amount)
    assert type(mine.amount) is float


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SCHEME, f"must have exactly one of {MEASURES}, got none of them"),
        (
            BITS + "8\nfraction_of_groups: 0.5\n",
            f"must have exactly one of {MEASURES}, got fraction_of_groups, effective_bits",
        ),
        (BITS + "8\nbits: 8\n", f"unknown key 'bits'; allowed: name, candidates, {MEASURES}"),
        ("name: mine\neffective_bits: 8\n", "key 'candidates' is missing"),
        ("candidates: [wfp8_afp8]\neffective_bits: 8\n", "key 'name' is missing"),
        (BITS.replace("mine", "a-b") + "8\n", "name must consist of a-z, 0-9 and _ only, got"),
        *[
            (BITS.replace("[wfp8_afp8]", raw) + "8\n", "candidates must be a list, got")
            for raw in ("wfp8_afp8", "null", "8", "{wfp8_afp8: 1}")
        ],
        *[
            (BITS.replace("[wfp8_afp8]", raw) + "8\n", "candidates.0 must be text, got")
            for raw in ("[8]", "[null]", "[[a]]")
        ],
        (
            BITS.replace("[wfp8_afp8]", "[]") + "8\n",
            "scheme 'mine': candidates must not be empty",
        ),
        *[
            (f"{SCHEME}{measure}: {raw}\n", f"{measure} must be a number, got")
            for measure in MEASURES.split(", ")
            for raw in ("true", "null", "[8]", "{a: 1}", "'8'", "eight", "2026-01-01", "1e999")
        ],
        *[
            (f"{SCHEME}fraction_of_weights: {raw}\n", "scheme 'mine': fraction_of_weights must be")
            for raw in ("1.5", "-1", ".nan", ".inf")
        ],
        *[
            (f"{BITS}{raw}\n", "scheme 'mine': effective_bits must be in (0, 16], got")
            for raw in ("0", "-0.0", "16.5", ".nan", "-.inf", "8:30", "9" * 300)
        ],
        *[
            (f"{BITS}{raw}\n", "effective_bits must be a number that a 64-bit float can hold, got")
            for raw in ("1" + "0" * 400, "-1" + "0" * 400, "9" * 4200)
        ],
    ],
    ids=lambda text: ascii(text[-30:]),
)
def test_invalid_scheme_is_refused_with_file_and_key(scheme, tmp_path, text, message):
    with pytest.raises(UsageError) as caught:
        scheme(text)
    assert str(caught.value).startswith(f"{tmp_path / 'mine.yaml'}: {message}")
