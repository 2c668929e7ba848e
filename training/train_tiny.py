"""Train an embedded model: a Qwen-VL architecture small enough to ship with the package.

    python -m training.train_tiny tiny-qwen3-vl
    python -m training.train_tiny tiny-qwen2.5-vl

The language model learns training/captions.txt, written for this project. The vision tower keeps
its seeded initial weights: no pictures are involved, and the harness never measures it. Prints the
loss on unseen captions before and after, next to a unigram baseline, and stores those figures
beside the weights.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pytest_autoquant.models.next_token import next_token_logits, next_token_loss
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
)

ROOT = Path(__file__).resolve().parent
PACKAGE = ROOT.parent / "harness" / "pytest_autoquant"
MODELS = PACKAGE / "models" / "data"
CAPTIONS = PACKAGE / "calibration" / "data"
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
VOCAB_SIZE = 2048
SEED = 20261121


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What an embedded model does not share with the others.

    Attributes:
        rope, text, vision: added to the rotary parameters and the two halves of the config.
        processor, video_processor: the classes that transformers has for pictures and videos.
    """

    model: type[PreTrainedModel]
    rope: dict[str, Any]
    text: dict[str, Any]
    vision: dict[str, Any]
    processor: str
    video_processor: str


ARCHITECTURES = {
    "tiny-qwen3-vl": Architecture(
        model=Qwen3VLForConditionalGeneration,
        rope={"mrope_section": [6, 5, 5], "mrope_interleaved": True},
        text={"head_dim": 32},
        vision={"num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
        processor="Qwen3VLProcessor",
        video_processor="Qwen3VLVideoProcessor",
    ),
    "tiny-qwen2.5-vl": Architecture(
        model=Qwen2_5_VLForConditionalGeneration,
        rope={"mrope_section": [4, 6, 6]},
        text={"bos_token_id": None, "max_window_layers": 6, "rms_norm_eps": 1e-6},
        vision={"fullatt_block_indexes": [1], "tokens_per_second": 2},
        processor="Qwen2_5_VLProcessor",
        video_processor="Qwen2VLVideoProcessor",
    ),
}


def read_lines(path: Path) -> list[str]:
    """Return the captions of a file, one per line."""
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE with Qwen's special tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=SPECIAL[0], pad_token=SPECIAL[0])


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, max_length: int, out: Path) -> None:
    """Store the tokenizer under the class name that every supported transformers knows."""
    tokenizer.save_pretrained(out)
    path = out / "tokenizer_config.json"
    config = {
        "eos_token": SPECIAL[0],
        "pad_token": SPECIAL[0],
        "model_max_length": max_length,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def save_processor(architecture: Architecture, model: PreTrainedModel, out: Path) -> None:
    """Describe how pictures become patches, for ``AutoProcessor``.

    Written by hand: transformers builds a whole processor only where torchvision is installed. A
    picture takes 4 to 256 of the model's positions.
    """
    vision = model.config.vision_config
    pixels_per_token = (vision.patch_size * vision.spatial_merge_size) ** 2
    config = {
        "processor_class": architecture.processor,
        "image_processor_type": "Qwen2VLImageProcessor",
        "video_processor_type": architecture.video_processor,
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
        "size": {"shortest_edge": 4 * pixels_per_token, "longest_edge": 256 * pixels_per_token},
    }
    path = out / "preprocessor_config.json"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def build_model(architecture: Architecture, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Initialize the tiny model: every decoder linear's input is a multiple of 128 wide."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    config = architecture.model.config_class(
        text_config={
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                **architecture.rope,
            },
            "tie_word_embeddings": True,
            "eos_token_id": ids["<|endoftext|>"],
            **architecture.text,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "out_hidden_size": 128,
            **architecture.vision,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    return architecture.model(config)


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """Tokenize without special tokens, as calibration does."""
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def by_length(rows: list[list[int]], batch_size: int, generator: torch.Generator) -> list:
    """Return shuffled batches of equal-length rows: no padding."""
    buckets: dict[int, list[list[int]]] = {}
    for index in torch.randperm(len(rows), generator=generator).tolist():
        buckets.setdefault(len(rows[index]), []).append(rows[index])
    batches = [
        torch.tensor(rows[start : start + batch_size])
        for rows in buckets.values()
        for start in range(0, len(rows), batch_size)
    ]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def summed_loss(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Return the sum of next-token cross-entropy over one batch, in nats."""
    return next_token_loss(next_token_logits(model, batch), batch)


@torch.no_grad()
def evaluate(model: torch.nn.Module, rows: list[list[int]]) -> float:
    """Next-token cross-entropy in nats per predicted token."""
    model.eval()
    batches = by_length(rows, 64, torch.Generator().manual_seed(0))
    total = sum(float(summed_loss(model, batch)) for batch in batches)
    model.train()
    return total / sum(batch[:, 1:].numel() for batch in batches)


def unigram_loss(train: list[list[int]], rows: list[list[int]]) -> float:
    """Cross-entropy in nats of the add-one unigram model of the training tokens."""
    counts = Counter(token for row in train for token in row)
    total = sum(counts.values()) + VOCAB_SIZE
    targets = [token for row in rows for token in row[1:]]
    return -sum(math.log((counts[token] + 1) / total) for token in targets) / len(targets)


def train(model, captions, eos, heldout, args) -> None:
    """AdamW with a cosine schedule; each caption ends with the end-of-text token."""
    generator = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW(
        model.model.language_model.parameters(), lr=args.lr, weight_decay=0.1, betas=(0.9, 0.98)
    )
    rows = [[*row, eos] for row in captions]
    total_steps = args.epochs * len(by_length(rows, args.batch, torch.Generator()))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, total_steps=total_steps, pct_start=0.05, cycle_momentum=False
    )
    for epoch in range(args.epochs):
        started = time.perf_counter()
        for batch in by_length(rows, args.batch, generator):
            loss = summed_loss(model, batch) / batch[:, 1:].numel()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        seconds = time.perf_counter() - started
        print(f"epoch {epoch + 1}: held-out {evaluate(model, heldout):.3f} ({seconds:.0f} s)")


def main() -> None:
    """Train, evaluate and store an embedded model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", choices=ARCHITECTURES, default="tiny-qwen3-vl")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--out", type=Path, help="default: the model's folder in the package")
    args = parser.parse_args()
    out = args.out or MODELS / args.name

    torch.manual_seed(SEED)
    captions = read_lines(ROOT / "captions.txt")
    tokenizer = train_tokenizer(captions)
    architecture = ARCHITECTURES[args.name]
    model = build_model(architecture, tokenizer)

    rows = {
        "training": encode(tokenizer, captions),
        "heldout": encode(tokenizer, read_lines(CAPTIONS / "heldout.txt")),
        "calibration": encode(tokenizer, read_lines(CAPTIONS / "captions.txt")),
    }
    unseen = ("heldout", "calibration")
    before = {name: evaluate(model, rows[name]) for name in unseen}
    train(model, rows["training"], tokenizer.eos_token_id, rows["heldout"], args)

    model = model.to(torch.bfloat16)
    model.save_pretrained(out)
    save_tokenizer(tokenizer, model.config.text_config.max_position_embeddings, out)
    save_processor(architecture, model, out)
    stored = type(model).from_pretrained(out, dtype=torch.float32)
    figures = {
        name: {
            "captions": len(rows[name]),
            "loss_before": round(before[name], 4),
            "loss_after": round(evaluate(stored, rows[name]), 4),
            "loss_unigram": round(unigram_loss(rows["training"], rows[name]), 4),
        }
        for name in unseen
    }
    record = {"unit": "nats per predicted token", "seed": SEED, "unseen": figures}
    (out / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
