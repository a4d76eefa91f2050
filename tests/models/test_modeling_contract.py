"""Contract: what the models of both families promise alike, with and without distillation token.

Weights are random; nothing is downloaded.
"""

import pytest
import torch
from support.families import CAIT, DEIT, DISTILLED_CAIT, DISTILLED_DEIT, assert_same_logits, images, seeds
from torch.export import Dim, export

# Other programs

EXPORTED = {
    "deit": (DEIT, {}),
    "distilled deit": (DISTILLED_DEIT, {"fusion": "softmax"}),
    "cait": (CAIT, {}),
    "cait in chunks": (CAIT, {"query_chunk_size": 7}),
    "distilled cait in chunks": (DISTILLED_CAIT, {"query_chunk_size": 7}),
}


def assert_exports_for_any_number_of_images(model, inputs, strict: bool) -> None:
    batch = Dim("batch")
    shapes = {name: {0: batch} for name in inputs(3)}
    program = export(model, (), inputs(3), dynamic_shapes=shapes, strict=strict).module()
    for batch_size in (1, 2, 5):
        torch.manual_seed(0)
        got = program(**inputs(batch_size))
        torch.manual_seed(0)
        expected = model(**inputs(batch_size))
        assert list(got) == list(expected)
        assert_same_logits(got, expected, atol=1e-6)
        if "loss" in expected:
            torch.testing.assert_close(got["loss"], expected.loss)


@pytest.mark.parametrize("name", EXPORTED)
@pytest.mark.parametrize(("size", "strict"), [(32, False), (48, False), (48, True)])
def test_exports_for_any_number_of_images(name, size, strict):
    """At the size that its positions are for, and at another."""
    kind, fields = EXPORTED[name]
    model = kind.tiny(**fields, num_hidden_layers=1)
    assert_exports_for_any_number_of_images(model, lambda n: {"pixel_values": images(n, size)}, strict)


@pytest.mark.parametrize("name", EXPORTED)
@pytest.mark.parametrize("with_seeds", [True, False])
def test_exports_in_training_for_any_number_of_images(name, with_seeds):
    """With labels and stochastic depth."""
    kind, fields = EXPORTED[name]
    model = kind.tiny(**fields, drop_path_rate=0.5).train()

    def inputs(n):
        given = {"pixel_values": images(n), "labels": torch.arange(n) % 5}
        return {**given, "view_seeds": seeds(n)} if with_seeds else given

    assert_exports_for_any_number_of_images(model, inputs, strict=False)
