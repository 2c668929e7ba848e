"""What is recorded, and which models the recorder refuses.

``Toy`` is a language model of three linears whose wiring each test chooses; the rest is tested on
the embedded model.
"""

from types import SimpleNamespace

import pytest
import torch
from builders import calibration_of, ignore_progress, model_state
from pytest_autoquant.calibration.batches import Batch, CalibrationData
from pytest_autoquant.calibration.captions import CaptionSet
from pytest_autoquant.errors import NotReplayableError
from pytest_autoquant.manifests.records.sensitivity_manifest import ModelRecord
from pytest_autoquant.models.layers import Linear
from pytest_autoquant.models.loading import LoadedModel
from pytest_autoquant.models.next_token import next_token_logits, next_token_loss
from pytest_autoquant.models.restore import preserved
from pytest_autoquant.scoring.replay.recorder import capture
from pytest_autoquant.scoring.replay.tape import estimate_bytes
from torch import nn

CPU = torch.device("cpu")
LAYER = "model.language_model.layers.3"
NAMES = ("q", "k", "v")
WIDTH, VOCABULARY = 4, 8

#: Two captions of 3 tokens in one batch and one of 2 tokens are scored; one of 4 only calibrates.
TOY_DATA = CalibrationData(
    captions=CaptionSet(name="toy", size="small", requested=4, lines=("a", "b", "c", "d")),
    scored=(Batch(rows=((5, 6),)), Batch(rows=((0, 1, 2), (3, 4, 0)))),
    unscored=(Batch(rows=((7, 1, 7, 2),)),),
    batch_size=2,
    sha256="0",
    dropped=(),
)


class Toy(nn.Module):
    """Embedding, then ``wiring(model, embedded)``, then a head."""

    def __init__(self, wiring):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in NAMES)
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.wiring = wiring

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, use_cache):
        return SimpleNamespace(logits=self.head(self.wiring(self, self.embedding(input_ids))))


def toy(wiring):
    """Load a toy whose weights need no gradients, as of a model in eval mode for calibration."""
    torch.manual_seed(0)
    shape = {"module_type": "Linear", "out_features": WIDTH, "in_features": WIDTH}
    return LoadedModel(
        module=Toy(wiring).requires_grad_(False),
        tokenizer=None,
        record=ModelRecord(
            id="toy",
            name="toy",
            architecture="Toy",
            weights="random",
            dtype="float32",
            num_parameters=1,
            num_language_model_linears=len(NAMES),
            digest="0",
        ),
        linears=tuple(Linear(name=name, input_widths=(WIDTH,), **shape) for name in NAMES),
        others=("head",),
        device=CPU,
    )


def shared(m, x):
    return m.q(x) * m.k(x) + m.v(x)


def chained(m, x):
    return m.v(m.k(m.q(x)))


def equal_but_separate(m, x):
    return m.q(x) * m.k(x.clone()) + m.v(x)


def changed_in_place(m, x):
    hidden = x * 1
    first = m.q(hidden)
    hidden += 1
    return first * m.k(hidden) + m.v(hidden)


@pytest.mark.parametrize(
    ("wiring", "source"),
    [
        (shared, {"q": "q", "k": "q", "v": "q"}),
        (chained, {"q": "q", "k": "k", "v": "v"}),
        (equal_but_separate, {"q": "q", "k": "k", "v": "v"}),
        (changed_in_place, {"q": "q", "k": "k", "v": "k"}),
    ],
)
def test_linears_that_read_one_tensor_share_one_input(wiring, source):
    tape = capture(toy(wiring), TOY_DATA, CPU, ignore_progress)
    assert tape.source == source
    assert set(tape.inputs) == set(tape.amax) == set(source.values())
    assert set(tape.gradients) == set(NAMES)


def test_recorded_values_are_those_of_the_model():
    """Batches of several captions come first; the third batch counts for the ranges only."""
    model = toy(shared)
    tape = capture(model, TOY_DATA, CPU, ignore_progress)
    embedding = model.module.embedding.weight
    scored = torch.tensor([0, 1, 2, 3, 4, 0, 5, 6])
    assert tape.num_multi_caption_tokens == 6
    assert torch.equal(tape.inputs["q"], embedding[scored])
    everything = torch.cat([scored, torch.tensor([7, 1, 7, 2])])
    assert torch.equal(tape.amax["q"], embedding[everything].abs().amax(dim=0))
    assert not torch.equal(tape.amax["q"], embedding[scored].abs().amax(dim=0))


def test_recorded_gradients_are_those_of_autograd():
    model = toy(shared)
    tape = capture(model, TOY_DATA, CPU, ignore_progress)
    outputs = {}
    handles = [
        model.module.get_submodule(name).register_forward_hook(
            lambda _, args, output, name=name: outputs.update({name: output.requires_grad_()})
        )
        for name in NAMES
    ]
    expected = {name: [] for name in NAMES}
    for batch in reversed(TOY_DATA.scored):
        ids = model.tensor(batch)
        loss = next_token_loss(next_token_logits(model.module, ids), ids)
        for name, gradient in zip(
            NAMES, torch.autograd.grad(loss, [outputs[name] for name in NAMES]), strict=True
        ):
            expected[name].append(gradient.flatten(0, 1))
    for handle in handles:
        handle.remove()
    for name in NAMES:
        assert torch.equal(tape.gradients[name], torch.cat(expected[name]))
        assert tape.gradients[name].abs().max() > 0


@pytest.mark.parametrize(
    ("wiring", "reason"),
    [
        (lambda m, x: m.q(x) + m.k(x), "1 linear did not run on the captions, such as v"),
        (lambda m, x: m.q(m.q(x)) + m.k(x) + m.v(x), "q runs several times per forward"),
        (lambda m, x: m.q(x) + m.k(x) + m.v(x[:, :1]), "v sees 2 of 6 tokens"),
        (
            lambda m, x: m.q(x) + m.k(x if x.shape[1] == 3 else x.clone()) + m.v(x),
            "k shares its input with q on some captions only",
        ),
        (
            lambda m, x: m.q(x) + m.k(x.clone() if x.shape[1] == 3 else x) + m.v(x.clone()),
            "k shares its input with q on some captions only",
        ),
    ],
    ids=["idle", "twice", "some tokens", "shared first", "shared later"],
)
def test_what_one_row_per_token_cannot_hold_is_refused(wiring, reason):
    model = toy(wiring)
    with pytest.raises(NotReplayableError) as caught:
        capture(model, TOY_DATA, CPU, ignore_progress)
    assert str(caught.value) == (
        f"{reason}; the replay engine cannot score this model: use --aq-engine modelopt"
    )
    assert not any(child._forward_hooks for child in model.module.modules())


@pytest.fixture(scope="module")
def data(tiny):
    return calibration_of(tiny, score_size=12)


@pytest.fixture(scope="module")
def tape(tiny, data):
    return capture(tiny, data, CPU, ignore_progress)


def test_siblings_of_the_embedded_model_share_inputs(tape):
    assert tape.source[f"{LAYER}.self_attn.k_proj"] == f"{LAYER}.self_attn.q_proj"
    assert tape.source[f"{LAYER}.self_attn.v_proj"] == f"{LAYER}.self_attn.q_proj"
    assert tape.source[f"{LAYER}.mlp.up_proj"] == f"{LAYER}.mlp.gate_proj"
    assert tape.source[f"{LAYER}.mlp.down_proj"] == f"{LAYER}.mlp.down_proj"
    assert len(tape.inputs) == 6 * 4
    assert len(tape.gradients) == 6 * 7


def test_attention_inputs_keep_all_draws_and_other_linears_the_first_two(tiny, data, tape):
    few, many = (capture(tiny, data, CPU, ignore_progress, draws) for draws in (2, 3))
    assert estimate_bytes(tiny, data, 3) >= many.nbytes > few.nbytes > tape.nbytes
    for name, gradient in many.gradients.items():
        kept = 3 if name.endswith(("q_proj", "k_proj", "v_proj")) else 2
        assert gradient.shape[1] == kept, name
        assert torch.equal(gradient[:, :2], few.gradients[name])
        assert not torch.equal(gradient[:, kept - 1], gradient[:, kept - 2])


def test_capture_leaves_the_model_unchanged_and_counts_batches(tiny, data):
    before, steps = model_state(tiny.module), []
    capture(tiny, data, CPU, lambda *step: steps.append(step))
    assert model_state(tiny.module) == before
    total = len(data.batches)
    assert steps == [("capture", done, total) for done in range(total)]


def test_hooks_are_removed_when_capture_is_interrupted(tiny, data):
    def interrupt(phase, done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture(tiny, data, CPU, interrupt)
    assert not any(child._forward_hooks for child in tiny.module.modules())


def test_linears_with_non_finite_gradients_are_named(tiny, data, tape):
    norm = tiny.module.get_submodule(f"{LAYER}.post_attention_layernorm")
    with preserved(norm, weights=True):
        norm.weight.data[0] = float("nan")
        names = capture(tiny, data, CPU, ignore_progress).non_finite_gradients
    assert f"{LAYER}.mlp.down_proj" in names
    assert tape.non_finite_gradients == ()
