"""Short names of layer groups."""

import pytest
from pytest_autoquant.manifests.group_names import short_names


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (("layers.0.mlp.up_proj", "lm_head"), ("layers.0.mlp.up_proj", "lm_head")),
        (("language_model.layers.0.a", "language_model.lm_head"), ("layers.0.a", "lm_head")),
        (("model.language_model.layers.10.a.b",), ("layers.10.a.b",)),
        (("model.layers.3.experts.7.up",), ("layers.3.experts.7.up",)),
        (
            ("vision.layers.0.a", "language.layers.0.a", "language.layers.1.a"),
            ("vision.layers.0.a", "language.layers.0.a", "layers.1.a"),
        ),
        ((), ()),
    ],
)
def test_names_start_at_the_list_of_layers_unless_two_groups_would_be_called_alike(names, short):
    assert short_names(names) == short
