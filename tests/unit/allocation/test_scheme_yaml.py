"""The user's schemes as YAML: what valid files define, and what is refused."""

import pytest
from pytest_autoquant.allocation.scheme_yaml import read_scheme
from pytest_autoquant.errors import UsageError

SCHEME = "name: mine\ncandidates: [wfp8_afp8]\n"
BITS = SCHEME + "effective_bits: "
MEASURES = "fraction_of_groups, fraction_of_weights, effective_bits, max_kl"


@pytest.fixture
def scheme(tmp_path):
    def read(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return read_scheme(path).value

    return read


@pytest.mark.parametrize(
    ("measure", "raw", "amount"),
    [
        ("fraction_of_groups", "0.3", 0.3),
        ("fraction_of_weights", "0", 0.0),
        ("effective_bits", "16", 16.0),
        ("max_kl", "0.02", 0.02),
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
        (
            BITS + "8\nmax_kl: 0.1\n",
            f"must have exactly one of {MEASURES}, got effective_bits, max_kl",
        ),
        (f"{SCHEME}max_kl: low\n", "max_kl must be a number, got 'low'"),
        *[
            (f"{SCHEME}max_kl: {raw}\n", "scheme 'mine': max_kl must be above 0, in nats per token")
            for raw in ("0", "-0.02", ".inf", ".nan")
        ],
        (BITS + "8\nbits: 8\n", f"unknown key 'bits'; allowed: name, candidates, {MEASURES}"),
        ("name: mine\neffective_bits: 8\n", "key 'candidates' is missing"),
        (BITS.replace("mine", "a-b") + "8\n", "name must consist of a-z, 0-9 and _ only, got"),
        (BITS.replace("[wfp8_afp8]", "wfp8_afp8") + "8\n", "candidates must be a list, got"),
        (BITS.replace("wfp8_afp8", "null") + "8\n", "candidates.0 must be text, got"),
        (BITS.replace("wfp8_afp8", "") + "8\n", "scheme 'mine': candidates must not be empty"),
        *[
            (f"{BITS}{raw}\n", "effective_bits must be a number, got")
            for raw in ("true", "null", "[8]", "'8'", "2026-01-01", "1e999")
        ],
        (f"{SCHEME}fraction_of_groups: '1'\n", "fraction_of_groups must be a number, got '1'"),
        (f"{SCHEME}fraction_of_weights: .nan\n", "scheme 'mine': fraction_of_weights must be in"),
        *[
            (f"{BITS}{raw}\n", "scheme 'mine': effective_bits must be in (0, 16], got")
            for raw in ("0", "-.inf", "8:30", "9" * 300)
        ],
        *[
            (f"{BITS}{raw}\n", "effective_bits must be a number that a 64-bit float can hold, got")
            for raw in ("-1" + "0" * 400, "9" * 4200)
        ],
    ],
    ids=lambda text: ascii(text[-30:]),
)
def test_invalid_scheme_is_refused_with_file_and_key(scheme, tmp_path, text, message):
    with pytest.raises(UsageError) as caught:
        scheme(text)
    assert str(caught.value).startswith(f"{tmp_path / 'mine.yaml'}: {message}")
