"""The embedded models: their files, their loss on unseen captions, and scores on them."""

import json

import pytest
import torch
from builders import calibration_of, config_of, ignore_progress, load_tiny
from pytest_autoquant.models.registry import REGISTRY
from pytest_autoquant.scoring.replay.engine import ReplayEngine
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


def sweep(tiny, size, *names):
    """Score combinations at a size; return the scores per token of each by its name."""
    data = calibration_of(tiny, size)
    configs = {name: config_of(*name.split("-")) for name in names}
    outcomes = ReplayEngine(tiny).score(list(configs.values()), data, ignore_progress)
    return {
        name: [group.score / data.scored_tokens for group in outcomes[config.digest].groups]
        for name, config in configs.items()
    }


def test_script_trains_every_embedded_model():
    embedded = [name for name, source in REGISTRY.items() if source.location == str(MODELS / name)]
    assert embedded == list(ARCHITECTURES) == list(CLASSES)


def test_architecture_has_a_vision_tower_and_the_folder_is_small(tiny, folder):
    assert sum(path.stat().st_size for path in folder.iterdir()) < 4 * 2**20
    assert tiny.record.architecture == CLASSES[tiny.record.name]
    assert len(tiny.module.model.visual.blocks) == 2
    assert not any("visual" in linear.name for linear in tiny.linears)
    assert sum("visual" in name for name in tiny.others) >= 2 * 4


def test_input_widths_are_multiples_of_128(tiny):
    shapes = [(linear.out_features, linear.in_features) for linear in tiny.linears]
    q, kv, o, gate_up, down = (128, 128), (64, 128), (128, 128), (384, 128), (128, 384)
    assert shapes == [q, kv, kv, o, gate_up, gate_up, down] * 6


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


def test_stored_processor_is_what_the_script_writes(tiny, folder, tmp_path):
    stored = folder / "preprocessor_config.json"
    save_processor(ARCHITECTURES[folder.name], tiny.module, tmp_path)
    assert stored.read_text() == (tmp_path / stored.name).read_text()


def test_processor_loads_offline_and_takes_an_image(tiny, folder, tmp_path):
    pytest.importorskip("torchvision", reason="transformers' processors need torchvision here")
    from PIL import Image

    architecture = ARCHITECTURES[tiny.record.name]
    AutoProcessor.from_pretrained(folder).save_pretrained(tmp_path / "saved")
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


def test_coarser_weights_score_higher_in_every_group(tiny):
    scores = sweep(
        tiny,
        "small",
        "wint4_afp16-w_per_out_channel",
        "wint8_afp16-w_per_out_channel",
        "wint4_aint8-w_per_out_channel",
        "wint8_aint8-w_per_out_channel",
        "wint4_afp16-w_per_tensor",
        "wint4_afp16-w_group64",
    )
    for activation in ("fp16", "int8"):
        int4 = scores[f"wint4_a{activation}-w_per_out_channel"]
        int8 = scores[f"wint8_a{activation}-w_per_out_channel"]
        assert all(a > b for a, b in zip(int4, int8, strict=True))
    per_tensor, groups = scores["wint4_afp16-w_per_tensor"], scores["wint4_afp16-w_group64"]
    assert sum(per_tensor) > 2 * sum(groups)
    assert all(a > b for a, b in zip(per_tensor, groups, strict=True))


@pytest.mark.slow
def test_ranking_at_small_agrees_with_large(tiny):
    names = (
        "wint4_aint8-default",
        "wint8_aint8-recipe_match_channel_token",
        "wfp8_afp8-default",
    )
    small, large = (sweep(tiny, size, *names) for size in ("small", "large"))
    correlations = [spearmanr(small[name], large[name]).statistic for name in names]
    assert min(correlations) > 0.9
