"""What is remembered between runs, and when it is probed anew."""

import json
from dataclasses import replace

import pytest
import torch
from pytest_autoquant.grid.vocabulary import load_vocabulary
from pytest_autoquant.modelopt_support import probe, probe_cache
from pytest_autoquant.modelopt_support.probe import Prober
from pytest_autoquant.modelopt_support.probe_cache import ProbeCache, ProbedOn
from pytest_autoquant.modelopt_support.status import Status

VOCABULARY = load_vocabulary()
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    """A user's cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tmp_path / "caches"


@pytest.fixture
def runs(monkeypatch):
    """The weight and input dtypes of every probe that ran."""
    found, stock = [], probe.quantize_probe

    def counting(config, device, dtype):
        pair = config.pair
        found.append((config.weight and pair.weight, config.input and pair.activation))
        return stock(config, device, dtype)

    monkeypatch.setattr(probe, "quantize_probe", counting)
    return found


def status(prober, pair, granularity="default"):
    config = prober.resolve(VOCABULARY.pairs[pair], VOCABULARY.granularities[granularity])
    return prober.support(config).status


def cached():
    return Prober(CPU, torch.float32, is_cached=True)


def test_each_half_runs_once_for_all_pairs_that_have_it(runs):
    prober = Prober(CPU, torch.float32)
    for pair in ("wint8_aint8", "wint8_afp8", "wfp8_aint8", "wfp8_afp8"):
        assert status(prober, pair) is Status.SUPPORTED
    halves = {(None, "fp8"), (None, "int8"), ("fp8", None), ("int8", None)}
    assert (set(runs), len(runs)) == (halves, 4)


def test_second_run_probes_nothing_that_ran(runs, caches):
    assert status(cached(), "wint8_aint8", "w_group64") is Status.SUPPORTED
    assert len(runs) == 3  # with the weights of the default overlay
    runs.clear()
    assert status(cached(), "wint8_aint8", "w_group64") is Status.SUPPORTED
    assert runs == []
    assert status(cached(), "wint8_afp8", "w_group64") is Status.SUPPORTED
    assert runs == [(None, "fp8")]
    assert status(Prober(CPU, torch.float32), "wint8_afp16") is Status.SUPPORTED
    assert runs[1:] == [("int8", None)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without CUDA")
def test_refusal_is_not_remembered(runs):
    assert [status(cached(), "wnvfp4_afp16") for _ in range(2)] == [Status.NEEDS_CUDA] * 2
    assert len(runs) == 2


@pytest.mark.parametrize("package", ["nvidia-modelopt", "triton"])
def test_other_version_is_probed_anew(runs, monkeypatch, package):
    status(cached(), "wint8_afp16")
    stock = probe_cache.version
    newer = {package: "99.0"}
    monkeypatch.setattr(probe_cache, "version", lambda name: newer.get(name) or stock(name))
    assert status(cached(), "wint8_afp16") is Status.SUPPORTED
    assert len(runs) == 2


def test_other_torch_dtype_or_probe_is_probed_anew(runs, monkeypatch, tmp_path):
    status(cached(), "wint8_afp16")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "99.0")
        status(cached(), "wint8_afp16")
    status(Prober(CPU, torch.bfloat16, is_cached=True), "wint8_afp16")
    changed = tmp_path / "probe.py"
    changed.write_text("another probe")
    monkeypatch.setattr(probe, "__file__", str(changed))
    status(cached(), "wint8_afp16")
    assert len(runs) == 4


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"bits": {}}', '{"probed_on": {}, "bits": {"k": 1}}', "\xff", "NaN"],
)
def test_corrupt_file_is_ignored_and_replaced(runs, content):
    status(cached(), "wint8_afp16")
    path = ProbedOn.of(CPU, torch.float32, probe_cache.Path(probe.__file__)).path
    path.write_text(content, encoding="latin-1")
    assert status(cached(), "wint8_afp16") is Status.SUPPORTED
    assert len(runs) == 2
    assert json.loads(path.read_text())["bits"]


def test_entries_of_another_form_are_ignored():
    on = replace(ProbedOn.of(CPU, torch.float32, probe_cache.Path(__file__)), modelopt="1.0")
    ProbeCache(on).add("good", {"weight": "d"})
    document = json.loads(on.path.read_text())
    document["bits"] |= {"list": [], "number": {"weight": 1}, "other": {"bias": "d"}}
    on.path.write_text(json.dumps(document))
    cache = ProbeCache(on)
    assert cache.get("good") == {"weight": "d"}
    assert [cache.get(key) for key in ("list", "number", "other")] == [None] * 3


def test_two_processes_keep_what_the_other_added():
    on = ProbedOn.of(CPU, torch.float32, probe_cache.Path(__file__))
    first, second = ProbeCache(on), ProbeCache(on)
    first.add("a", {"weight": "1"})
    second.add("b", {"input": "2"})
    assert ProbeCache(on).get("a") == {"weight": "1"}
    assert ProbeCache(on).get("b") == {"input": "2"}


def test_unwritable_folder_is_ignored(runs, caches):
    caches.write_text("a file in the way")
    assert status(cached(), "wint8_afp16") is Status.SUPPORTED
    assert status(cached(), "wint8_afp16") is Status.SUPPORTED
    assert len(runs) == 2


def test_extensions_are_built_before_the_first_probe_and_only_then():
    built = []
    for _ in range(2):
        prober = Prober(CPU, torch.float32, is_cached=True, before_first=lambda: built.append(1))
        for pair in ("wint8_afp16", "wint8_aint8"):
            status(prober, pair)
    assert built == [1]
