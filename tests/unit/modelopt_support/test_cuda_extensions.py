"""Building ModelOpt's CUDA extensions before the first quantizer needs them."""

import warnings

from modelopt.torch.quantization import extensions
from pytest_autoquant.modelopt_support.cuda_extensions import build_extensions
from pytest_autoquant.modelopt_support.quiet import quiet


def test_every_extension_is_loaded_quietly_and_failures_are_left_to_its_quantizers(
    monkeypatch, capsys
):
    loaded = []

    def loader(name):
        def load(raise_if_failed=False):
            print("c++ -c ...")
            loaded.append((name, raise_if_failed))

        return load

    names = ("get_cuda_ext", "get_cuda_ext_fp8", "get_cuda_ext_mx")
    for name in names:
        monkeypatch.setattr(extensions, name, loader(name))
    build_extensions()
    assert loaded == [(name, False) for name in names]
    assert capsys.readouterr() == ("", "")


def test_quiet_discards_output_and_warnings_only_inside(capsys, recwarn):
    with quiet():
        print("discarded")
        warnings.warn("discarded", stacklevel=1)
    print("kept")
    assert capsys.readouterr() == ("kept\n", "")
    assert list(recwarn) == []
