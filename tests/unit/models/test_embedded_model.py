"""The embedded models: their files, their loss on unseen captions, and scores on them."""

import json

import pytest
import torch
from builders import calibration_of, ignore_progress, load_tiny
from pytest_autoquant.formats.effective_config import resolve
from pytest_autoquant.grid.vocabulary import load_vocabulary
from pytest_autoquant.models.registry import REGISTRY
from pytest_autoquant.scoring.stock import StockEngine
from scipy.stats import spearmanr
from transformers import AutoProcessor, AutoTokenizer

from training.train_tiny import (
    ARCHITECTURES,
    CAPTIONS,
    MODELS,
    ROOT,
    SEED,
    SPECIAL,
    VOCAB_SIZE,
    build_model,
    encode,
    evaluate,
    read_lines,
    save_processor,
    train_tokenizer,
    unigram_loss,
)

VOCABULARY = load_vocabulary()
CLASSES = {
    "tiny-qwen3-vl": "Qwen3VLForConditionalGeneration",
    "tiny-qwen2.5-vl": "Qwen2_5_VLForConditionalGeneration",
}


@pytest.fixture(scope="module", params=CLASSES)
def tiny(request):
    return load_tiny(request.param)


@pytest.fixture(scope="module")
def folder(tiny):
    return MODELS / tiny.record.name


@pytest.fixture(scope="module")
def group_scores(tiny):
    def measure(pair, granularity, size="small"):
        data = calibration_of(tiny, size)
        effective = resolve(VOCABULARY.pairs[pair], VOCABULARY.granularities[granularity])
        engine = StockEngine(tiny, method="gradient")
        (measured,) = engine.score([effective], data, ignore_progress).values()
        return [group.score / data.scored_tokens for group in measured.groups]

    return measure


def test_script_trains_every_embedded_model():
    embedded = [name for name, source in REGISTRY.items() if source.location == str(MODELS / name)]
    assert embedded == list(ARCHITECTURES) == list(CLASSES)


def test_folder_is_smaller_than_4_mebibytes(folder):
    assert sum(path.stat().st_size for path in folder.iterdir()) < 4 * 2**20


def test_architecture_has_a_vision_tower(tiny):
    assert tiny.record.architecture == CLASSES[tiny.record.name]
    assert len(tiny.module.model.visual.blocks) == 2
    assert not any("visual" in linear.name for linear in tiny.linears)
    assert sum("visual" in name for name in tiny.others) >= 2 * 4


def test_input_widths_are_multiples_of_128(tiny):
    assert len(tiny.linears) == 6 * 7
    shapes = {
        linear.name.rpartition(".")[2]: (linear.out_features, linear.in_features)
        for linear in tiny.linears
    }
    assert shapes == {
        "q_proj": (128, 128),
        "k_proj": (64, 128),
        "v_proj": (64, 128),
        "o_proj": (128, 128),
        "gate_proj": (384, 128),
        "up_proj": (384, 128),
        "down_proj": (128, 384),
    }
    assert {linear.in_features % 128 for linear in tiny.linears} == {0}


def test_only_qwen25_has_biases(tiny):
    attention = tiny.module.get_decoder().layers[0].self_attn
    biases = [getattr(attention, f"{x}_proj").bias for x in "qkvo"]
    if tiny.record.name == "tiny-qwen3-vl":
        assert biases == [None] * 4
    else:
        assert all(bias.abs().sum() > 0 for bias in biases[:3])
        assert biases[3] is None


def test_script_builds_the_stored_config_and_tokenizer(folder, tmp_path):
    torch.manual_seed(SEED)
    tokenizer = train_tokenizer(read_lines(ROOT / "captions.txt"))
    model = build_model(ARCHITECTURES[folder.name], tokenizer).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ours, stored = (json.loads((at / "config.json").read_text()) for at in (tmp_path, folder))
    assert ours.pop("transformers_version")
    assert stored.pop("transformers_version")
    assert ours == stored
    vocabularies = [json.loads((at / "tokenizer.json").read_text()) for at in (tmp_path, folder)]
    assert vocabularies[0]["model"]["vocab"] == vocabularies[1]["model"]["vocab"]


def test_tokenizer_decodes_what_it_encodes(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == VOCAB_SIZE
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL)) == list(range(len(SPECIAL)))
    lines = [*read_lines(CAPTIONS / "heldout.txt"), "Ein Käfer über dem 🌊."]
    assert tokenizer.batch_decode(encode(tokenizer, lines)) == lines


def test_image_features_are_as_wide_as_the_decoder(tiny):
    vision = tiny.module.config.vision_config
    grid = torch.tensor([[1, 12, 20]])
    pixels = torch.randn(12 * 20, 3 * vision.temporal_patch_size * vision.patch_size**2)
    with torch.no_grad():
        (features,) = tiny.module.get_image_features(pixels, grid).pooler_output
    assert features.shape == (12 * 20 // vision.spatial_merge_size**2, 128)


@pytest.fixture
def described(tiny, folder, tmp_path):
    """Copy the folder's small files, with the processor that the script describes."""
    for path in folder.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    save_processor(ARCHITECTURES[folder.name], tiny.module, tmp_path)
    return tmp_path


def test_stored_processor_is_what_the_script_writes(folder, described):
    stored = folder / "preprocessor_config.json"
    assert stored.read_text() == (described / stored.name).read_text()


def test_processor_loads_offline_and_takes_an_image(tiny, described, tmp_path):
    pytest.importorskip("torchvision", reason="transformers' processors need torchvision here")
    from PIL import Image

    architecture = ARCHITECTURES[tiny.record.name]
    AutoProcessor.from_pretrained(described).save_pretrained(tmp_path / "saved")
    processor = AutoProcessor.from_pretrained(tmp_path / "saved")
    assert type(processor).__name__ == architecture.processor
    assert type(processor.video_processor).__name__ == architecture.video_processor
    text = "<|vision_start|><|image_pad|><|vision_end|> A cat."
    for size in ((16, 16), (2000, 2000)):
        inputs = processor(text=text, images=Image.new("RGB", size), return_tensors="pt")
        assert 4 <= int((inputs["input_ids"] == SPECIAL.index("<|image_pad|>")).sum()) <= 256
        with torch.no_grad():
            assert tiny.module(**inputs).logits.isfinite().all()


def test_loss_on_unseen_captions_is_far_below_the_unigram_loss(tiny, folder):
    unseen = encode(tiny.tokenizer, read_lines(CAPTIONS / "heldout.txt"))
    seen = encode(tiny.tokenizer, read_lines(ROOT / "captions.txt"))
    loss, unigram = evaluate(tiny.module, unseen), unigram_loss(seen, unseen)
    tiny.module.eval()
    assert loss < unigram - 2
    stated = json.loads((folder / "training.json").read_text())["unseen"]["heldout"]
    assert loss == pytest.approx(stated["loss_after"], abs=1e-3)
    assert unigram == pytest.approx(stated["loss_unigram"], abs=1e-3)
    assert stated["loss_before"] > unigram


@pytest.mark.parametrize("activation", ["fp16", "int8"])
def test_int4_weights_score_above_int8_in_every_group(group_scores, activation):
    int4 = group_scores(f"wint4_a{activation}", "w_per_out_channel")
    int8 = group_scores(f"wint8_a{activation}", "w_per_out_channel")
    assert all(a > b for a, b in zip(int4, int8, strict=True))


def test_int4_per_tensor_scores_above_groups_of_64(group_scores):
    per_tensor = group_scores("wint4_afp16", "w_per_tensor")
    groups = group_scores("wint4_afp16", "w_group64")
    assert sum(per_tensor) > 2 * sum(groups)
    assert all(a > b for a, b in zip(per_tensor, groups, strict=True))


@pytest.mark.parametrize(
    ("pair", "granularity"),
    [
        ("wint4_aint8", "default"),
        ("wint8_aint8", "recipe_match_channel_token"),
        ("wfp8_afp8", "default"),
    ],
)
def test_ranking_at_small_agrees_with_large(group_scores, record_property, pair, granularity):
    small = group_scores(pair, granularity, "small")
    large = group_scores(pair, granularity, "large")
    correlation = spearmanr(small, large).statistic
    record_property(f"spearman {pair} {granularity}", float(correlation))
    assert correlation > 0.9
