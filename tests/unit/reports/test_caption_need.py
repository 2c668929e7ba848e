"""The sentence on how many captions a model needs."""

import numpy as np
import pytest
from builders import results_of
from pytest_autoquant.manifests.case_result import ErrorBar, Group, ScoredCaptions
from pytest_autoquant.manifests.records.packed_scores import pack_scores
from pytest_autoquant.manifests.uncertainty import CaptionSample, group_uncertainties
from pytest_autoquant.reports.markdown.session.caption_need import caption_needs
from pytest_autoquant.reports.markdown.session.report import summary_markdown
from pytest_autoquant.reports.report_model import report_model


@pytest.fixture(scope="session")
def noisy(case_of):
    """A case of 12 groups a factor apart, scored on the first captions of a noisy population."""
    population = np.random.default_rng(0).normal(1.0, 0.2, (12, 400))
    population *= 2.0 ** -np.arange(12)[:, None]

    def build(captions, **given):
        parts = population[:, :captions].tolist()
        scored = ScoredCaptions(
            count=captions,
            digests=tuple(f"{index:08}" for index in range(captions)),
            predictions=(1,) * captions,
        )
        sample = CaptionSample(
            captions=scored.digests, predictions=scored.predictions, scores=parts
        )
        groups = tuple(
            Group(
                name=f"g{index}",
                score=sum(part) / captions,
                rank=index + 1,
                modules=(f"g{index}",),
                weights=8,
                selected=True,
                error=ErrorBar(
                    standard_error=found.standard_error,
                    rank_interval=found.rank_interval,
                    top_ten_probability=found.top_ten_probability,
                    caption_scores=pack_scores(part),
                ),
            )
            for index, (part, found) in enumerate(
                zip(parts, group_uncertainties(sample), strict=True)
            )
        )
        scores = {group.name: group.score for group in groups}
        return case_of(scores, groups=groups, scored=scored, **given)

    return build


def test_sentence_answers_from_the_error_bars(noisy):
    """Noise of 20% of the score: 0.2 / sqrt(n); 16 captions give 5%."""
    cases = [noisy(16, size="small"), noisy(100, size="medium"), noisy(100, size="large")]
    (need,) = caption_needs(results_of(*cases))
    assert [(each.sizes, each.captions, each.sure) for each in need.at] == [
        (("small",), 16, 10),
        (("medium", "large"), 100, 10),
    ]
    assert [each.error for each in need.at] == pytest.approx([0.05, 0.02], rel=0.15)
    assert need.captions == pytest.approx(16, abs=4)
    assert need.halves == 1.0
    assert need.sentence == (
        "toy, gradient: the standard error of a group's score is, in the median, "
        f"{need.at[0].error:.1%} of it at small (16 captions scored) and {need.at[1].error:.1%} of "
        "it at medium and large (100 captions scored); 10 and 10 groups are surely among the ten "
        "most sensitive; two halves of 50 captions without a common one rank the groups alike to "
        f"1.0000 (Spearman); for an error of 5%, score about {need.captions} captions."
    )
    assert "## How many captions" in summary_markdown(report_model(results_of(*cases)))


def test_without_error_bars_there_is_no_answer(case_of):
    results = results_of(case_of({"a": 2.0, "b": 1.0}))
    assert list(caption_needs(results)) == []
    assert "How many captions" not in summary_markdown(report_model(results))
