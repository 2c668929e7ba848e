"""Builders that tests of several rooms share. Heavy imports wait until a builder needs them."""

import hashlib
import json
import shutil
from contextlib import contextmanager
from dataclasses import replace
from html.parser import HTMLParser
from importlib import import_module
from math import inf
from pathlib import Path

from pytest_autoquant.manifests.records.outcomes import StructureCheck
from pytest_autoquant.options.run_plan import RunPlan
from pytest_autoquant.options.settings import RawValue, read_settings

#: Elements of HTML that have no end tag.
_VOID = {
    "meta",
    "br",
    "hr",
    "img",
    "input",
    "link",
    "col",
    "area",
    "base",
    "embed",
    "source",
    "wbr",
}


class HtmlPage(HTMLParser):
    """An HTML document taken apart; every element must be closed by its own end tag.

    Attributes:
        elements: tag and attributes of each element, in document order.
        texts: the text in each element, its descendants' included.
        text: the text of the whole document.
    """

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.texts, self.text, self._open = [], [], "", []
        self.feed(html)
        self.close()

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.texts.append("")

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in _VOID:
            self._open.append((tag, len(self.texts) - 1))

    def handle_endtag(self, tag):
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        self.text += data
        for _, index in self._open:
            self.texts[index] += data

    @property
    def structure(self):
        """Tag and attribute names of every element."""
        return [(tag, tuple(attributes)) for tag, attributes in self.elements]

    @property
    def tags(self):
        return {tag for tag, _ in self.elements}

    @property
    def links(self):
        return [attributes["href"] for attributes, _ in self.all("a")]

    @property
    def images(self):
        return [attributes["src"] for attributes, _ in self.all("img")]

    @property
    def tables(self):
        """``tables[table][row][cell]`` is text, the header row first."""
        return self._tables(0)

    @property
    def data(self):
        """What the page's script reads."""
        return json.loads(self.text_of(id="data"), parse_constant=_refuse)

    def all(self, tag):
        """Return attributes and text of every element of a kind."""
        return [
            (attributes, text)
            for (name, attributes), text in zip(self.elements, self.texts, strict=True)
            if name == tag
        ]

    def text_of(self, **wanted):
        """Return the text of the one element with these attributes."""
        (found,) = [
            text
            for (_, attributes), text in zip(self.elements, self.texts, strict=True)
            if wanted.items() <= attributes.items()
        ]
        return found

    def table(self, name):
        """Return the rows of the table with this ``data-name``."""
        start = next(i for i, (_, a) in enumerate(self.elements) if a.get("data-name") == name)
        return self._tables(start)[0]

    def _tables(self, start):
        found = []
        for (tag, _), text in zip(self.elements[start:], self.texts[start:], strict=True):
            if tag == "table":
                found.append([])
            elif tag == "tr":
                found[-1].append([])
            elif tag in ("td", "th"):
                found[-1][-1].append(text)
        return found


def _refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


def changed(record, part, **values):
    """Return a record with some fields of one of its parts replaced, and their copies with them."""
    record = replace(record, **{part: replace(getattr(record, part), **values)})
    return _with_copied_names(record) if part == "case" else record


def _with_copied_names(manifest):
    case, quantization = manifest.case, manifest.quantization
    overlay = replace(quantization.quant_granularity, name=case.granularity)
    return replace(
        manifest,
        dataset=replace(manifest.dataset, size=case.size),
        scheme=replace(manifest.scheme, auto_quantize_method=case.method),
        quantization=replace(quantization, quant_granularity=overlay),
    )


def settings_of(*, in_ini=False, **values):
    """Read settings from raw values by option name, as on the command line or in the ini file."""
    return read_settings(
        lambda option: RawValue(
            value=values.get(option.name),
            origin=f"ini option {option.ini}" if in_ini else option.flag,
            is_on_command_line=not in_ini,
        )
    )


def run_plan(rootdir=Path(), **values):
    """Plan a run from raw option values on the command line, without the user's cache folder."""
    return RunPlan.of(settings_of(**({"cache": False} | values)), rootdir)


def structure_check(pair="wfp8_afp8", granularity="default", status="supported", **values):
    """Build the result of a structure case."""
    defaults = {"reason": "", "format_name": "F", "effective_bits": 8.0, "digest": "d"}
    return StructureCheck(pair=pair, granularity=granularity, status=status, **(defaults | values))


def results_of(*outcomes, **attributes):
    """Return the results of a session: measured cases, skips, failures and structure checks."""
    from pytest_autoquant.reports.session_results import SessionResults

    results = SessionResults(**attributes)
    for outcome in outcomes:
        if isinstance(outcome, StructureCheck):
            results.structures[outcome.pair, outcome.granularity] = outcome
        else:
            results.add(outcome)
    return results


def files_in(root):
    """Return the bytes of every file below a folder, by path."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


@contextmanager
def one_thread():
    """Let torch use one thread: several test processes share the cores."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def import_everything():
    """Import everything that a run imports, the libraries by a measurement.

    pytester forgets modules that an in-process run is the first to import, and neither torch nor
    ModelOpt's patches of transformers survive being imported twice.
    """
    for name in (
        "pytest_autoquant.plugin.controller.hooks",
        "pytest_autoquant.plugin.controller.reporting",
        "pytest_autoquant.plugin.worker.hooks",
        "pytest_autoquant.reports.terminal_report",
        "vl_convert",
    ):
        import_module(name)
    from pytest_autoquant.scoring.runner import MeasurementRunner

    plan = run_plan(device="cpu", score_size="1", pairs="wint8_afp16", sizes="small")
    runner = MeasurementRunner(plan.settings, plan.source, ignore_progress, print)
    runner.configurations.check(plan.combinations[0])
    runner.measure(plan.cases[0])


def ignore_progress(phase, done, total):
    """A ``Progress`` that shows nothing."""


def load_tiny(name="tiny-qwen3-vl", **options):
    """Load an embedded model, or a folder, in fp32 on the CPU."""
    import torch
    from pytest_autoquant.models.loading import load_model
    from pytest_autoquant.models.registry import find_model

    options = {"device": torch.device("cpu"), "dtype": torch.float32} | options
    is_random = "random_seed" in options
    return load_model(find_model(name, random_weights=is_random), **options)


def save_mixture(folder, *, layers=1, experts=4):
    """Save a config of Qwen3-VL with fused experts, two per token, and a tokenizer: no weights."""
    from pytest_autoquant.models.registry import REGISTRY
    from transformers import AutoConfig, AutoTokenizer, Qwen3VLMoeConfig

    embedded = REGISTRY["tiny-qwen3-vl"].location
    dense = AutoConfig.from_pretrained(embedded).to_dict()
    text = dense["text_config"] | {
        **{"model_type": "qwen3_vl_moe_text", "num_hidden_layers": layers},
        **{"num_experts": experts, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
    }
    vision = dense["vision_config"] | {"model_type": "qwen3_vl_moe"}
    Qwen3VLMoeConfig(
        text_config=text, vision_config=vision, architectures=["Qwen3VLMoeForConditionalGeneration"]
    ).save_pretrained(folder)
    AutoTokenizer.from_pretrained(embedded).save_pretrained(folder)
    return folder


def put_on_hub(hub, hub_id, folder, commit, branch="main"):
    """Copy a folder into a hub cache as a commit, which becomes the branch's."""
    repository = hub / f"models--{hub_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    shutil.copytree(folder, snapshot, dirs_exist_ok=True)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / branch).write_text(commit)
    return snapshot


def use_hub(monkeypatch, hub):
    """Let a folder be the only hub: its cache, without a network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))


def config_of(pair, granularity="default"):
    """Resolve the effective config of a built-in pair and granularity."""
    from pytest_autoquant.formats.effective_config import resolve
    from pytest_autoquant.grid.vocabulary import load_vocabulary

    vocabulary = load_vocabulary()
    return resolve(vocabulary.pairs[pair], vocabulary.granularities[granularity])


def distinct_configs(runner, plan):
    """Return test id and config of each distinct config of a run plan that runs here."""
    found = {}
    for combination in plan.combinations:
        if runner.support(combination).is_supported:
            config = runner.config(combination)
            found.setdefault(config.digest, (combination.test_id, config))
    assert found
    return list(found.values())


def awq_config():
    """Resolve a user's pair over ModelOpt's AWQ preset, whose calibration changes weights."""
    from pytest_autoquant.formats.effective_config import resolve
    from pytest_autoquant.formats.granularity import Granularity
    from pytest_autoquant.formats.quant_pair import QuantPair
    from pytest_autoquant.modelopt_support.presets import load_preset

    pair = QuantPair(
        name="awq",
        weight="int4",
        activation="fp16",
        format_name="INT4_AWQ_CFG",
        experimental=True,
        from_preset=True,
    )
    return resolve(pair, Granularity(name="default"), load_preset(pair))


def change_weights(folder, change):
    """Rewrite a checkpoint's weights after ``change(weights)``."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def calibration_of(model, size="small", *, batch_size=32, score_size=128):
    """Batch the built-in captions of a size for a model."""
    from pytest_autoquant.calibration.batches import calibration_data
    from pytest_autoquant.calibration.captions import load_captions

    captions = load_captions(None, size)
    return calibration_data(captions, model.tokenize, batch_size=batch_size, score_size=score_size)


def covered(scores, predictions, count, rounds=200):
    """Draw captions from a population; return how often intervals hold its scores and ranks.

    Returns the share over all groups for scores, and by group for ranks.
    """
    import numpy as np
    from pytest_autoquant.manifests.uncertainty import (
        CaptionSample,
        group_uncertainties,
        student_t,
    )

    generator = np.random.default_rng(3)
    true = scores.sum(1) / predictions.sum()
    ranks = (-true).argsort().argsort() + 1
    score_hits, rank_hits = [], []
    for _ in range(rounds):
        drawn = generator.integers(0, len(predictions), count)
        sample = CaptionSample(
            captions=[str(index) for index in range(count)],
            predictions=predictions[drawn].tolist(),
            scores=scores[:, drawn],
        )
        found = group_uncertainties(sample)
        errors = np.array([each.standard_error for each in found]) * student_t(count - 1)
        score_hits.append(abs(sample.per_token - true) <= errors)
        intervals = np.array([each.rank_interval for each in found])
        rank_hits.append((intervals[:, 0] <= ranks) & (ranks <= intervals[:, 1]))
    return np.mean(score_hits), np.mean(rank_hits, axis=0)


def model_state(module):
    """Describe everything that a measurement may change in a model, for comparison by ``==``."""
    import torch

    ids = torch.arange(5, 25, device=next(module.parameters()).device)[None]
    children = list(module.modules())
    with torch.no_grad():
        logits = module(input_ids=ids, use_cache=False).logits
    return {
        "logits": _digest(logits),
        "weights": [_digest(p) for p in module.parameters()],
        "buffers": {name: _digest(buffer) for name, buffer in module.named_buffers()},
        "identity": [id(p) for p in module.parameters()],
        "grads": [(p.requires_grad, p.grad) for p in module.parameters()],
        "classes": [type(child) for child in children],
        "attributes": [list(child.__dict__) for child in children],
        "values": [
            {k: v for k, v in vars(child).items() if isinstance(v, bool | int | float | str)}
            for child in children
        ],
        "hooks": [
            (len(child._forward_hooks), len(child._forward_pre_hooks), len(child._backward_hooks))
            for child in children
        ],
        "config": module.config.to_json_string(),
        "is_tied": module.lm_head.weight is module.get_input_embeddings().weight,
    }


def _digest(tensor):
    import torch

    raw = tensor.detach().contiguous().cpu().view(torch.uint8)
    return hashlib.sha256(raw.numpy().tobytes()).hexdigest()


def with_case_names(manifest, **names):
    """Return a manifest with another size, granularity or status, and the case id of its names."""
    case = replace(manifest.case, **names)
    parts = (manifest.model.name, case.pair, case.granularity, case.size, case.method)
    return _with_copied_names(replace(manifest, case=replace(case, case_id="/".join(parts))))


def with_scores(manifest, scores):
    """Return a manifest with other groups, of one linear each, all of them selected.

    ``scores`` are in module order; None is not finite.
    """
    ranked = sorted(scores, key=lambda name: -inf if scores[name] is None else -scores[name])
    total = None if None in scores.values() else float(sum(scores.values()))
    group = next(iter(manifest.layer_sensitivity.values()))
    layer = next(iter(manifest.layers.values()))
    line = manifest.sensitivity_ranking[0]
    bits = manifest.quantization.effective_bits
    if layer.stored_bits is not None:
        bits = layer.stored_bits / (layer.out_features * layer.in_features)
    return replace(
        manifest,
        quantization=replace(manifest.quantization, effective_bits=bits),
        num_quantized_layers=len(scores),
        layers={
            name: replace(layer, group=f"{name}.quant_recipe", selected=True) for name in scores
        },
        layer_sensitivity={
            f"{name}.quant_recipe": replace(
                group,
                scores=(score, 0.0),
                importance=score,
                rank=ranked.index(name) + 1,
                module_names=(name,),
                caption_scores=None,
            )
            for name, score in scores.items()
        },
        sensitivity_ranking=tuple(
            replace(line, name=f"{name}.quant_recipe", importance=scores[name]) for name in ranked
        ),
        autoquant_state=replace(
            manifest.autoquant_state,
            score=total,
            total_score=total,
            effective_bits=bits,
        ),
    )


def with_check(manifest, kl, *, captions=3, error=0.01):
    """Return a manifest whose groups have these measured KL divergences, in module order."""
    from pytest_autoquant.manifests.records.score_check import (
        GroupDivergence,
        ScoreCheck,
        rank_agreement,
    )

    found = dict(zip(manifest.layer_sensitivity, kl, strict=True))
    scores = {name: group.importance for name, group in manifest.layer_sensitivity.items()}
    spearman, top_ten = rank_agreement(scores, found)
    check = ScoreCheck(
        captions=captions,
        tokens=sum(manifest.dataset.scored_predictions[:captions]),
        spearman=spearman,
        top_ten=top_ten,
        groups={n: GroupDivergence(kl=v, standard_error=error) for n, v in found.items()},
        seconds=1.5,
    )
    return replace(manifest, score_check=check)


def with_whole(manifest, caption_kl, *, error=0.25, **values):
    """Return a manifest whose whole model has these KL divergences, by its first captions."""
    from pytest_autoquant.manifests.records.packed_scores import pack_scores
    from pytest_autoquant.manifests.records.whole_model import WholeModelKL

    tokens = sum(manifest.dataset.scored_predictions[: len(caption_kl)])
    whole = WholeModelKL(
        captions=len(caption_kl),
        tokens=tokens,
        kl=sum(caption_kl) / tokens,
        standard_error=error,
        caption_kl=pack_scores(caption_kl),
        seconds=1.5,
        **values,
    )
    return replace(manifest, whole_model=whole)


def linear(name, out_features, in_features):
    """A linear layer of a model that need not exist."""
    from pytest_autoquant.models.layers import Linear

    return Linear(
        name=name,
        module_type="Linear",
        out_features=out_features,
        in_features=in_features,
        input_widths=(in_features,),
    )
