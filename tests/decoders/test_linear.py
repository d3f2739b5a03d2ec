"""The linear decoder: one linear map of normalised features, whatever their sizes."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.decoders import Linear
from zoo.errors import UserError

CHANNELS = (4, 6, 8, 10)


def pyramid(height: int, width: int, batch: int = 1):
    image = torch.rand(batch, 3, height, width)
    return [
        torch.rand(batch, c, -(-height // s), -(-width // s)) for c, s in zip(CHANNELS, Linear.strides, strict=True)
    ], image


def test_is_the_sum_of_a_linear_map_of_each_level():
    torch.manual_seed(0)
    decoder = Linear(CHANNELS, 3).eval()
    for values in (decoder.norm.weight, decoder.norm.bias, decoder.norm.running_mean, decoder.norm.running_var):
        torch.nn.init.uniform_(values, 0.5, 1.5)
    features, image = pyramid(50, 70, batch=2)
    scale = decoder.norm.weight / (decoder.norm.running_var + decoder.norm.eps).sqrt()
    shift = decoder.norm.bias - decoder.norm.running_mean * scale
    matrix = decoder.head.weight[:, :, 0, 0]
    expected = (decoder.head.bias + matrix @ shift)[None, :, None, None]
    # a linear map per pixel and a bilinear resize can change places
    for part, level in zip((matrix * scale).split(CHANNELS, dim=1), features, strict=True):
        mapped = torch.einsum("kc,bchw->bkhw", part, level)
        expected = expected + F.interpolate(mapped, (13, 18), mode="bilinear", align_corners=False)
    torch.testing.assert_close(decoder(features, image)["logits"], expected, atol=1e-5, rtol=0)


@settings(max_examples=15, deadline=None)
@given(height=st.integers(1, 80), width=st.integers(1, 80))
def test_answers_at_a_quarter_of_the_image_size_rounded_up(height, width):
    with torch.no_grad():
        logits = Linear(CHANNELS, 2).eval()(*pyramid(height, width))["logits"]
    assert logits.shape == (1, 2, -(-height // 4), -(-width // 4))
    assert logits.isfinite().all()


def test_dropout_drops_whole_channels_in_training_alone():
    torch.manual_seed(0)
    decoder = Linear(CHANNELS, 2, dropout=0.5)
    inputs = pyramid(32, 32)
    seen = []
    decoder.head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    decoder(*inputs)
    dropped = (seen[0] == 0).flatten(2)
    assert torch.equal(dropped.any(2), dropped.all(2))
    assert 0 < dropped.all(2).sum() < sum(CHANNELS)
    decoder.eval()
    assert torch.equal(decoder(*inputs)["logits"], decoder(*inputs)["logits"])


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_a_share_that_is_none_is_refused(dropout):
    with pytest.raises(UserError, match=f"dropout {dropout}; give the share"):
        Linear(CHANNELS, 1, dropout=dropout)
