"""The arithmetic of the pyramid: sizes, and what is left alone."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.encoders import create_encoder


def test_a_map_that_has_its_levels_size_is_handed_on_without_a_copy():
    encoder = create_encoder({"name": "resnet18"})
    x = torch.rand(1, 64, 16, 24)
    assert encoder.fit(x, 4, 4, 64, 96) is x
    image = torch.rand(1, 3, 64, 96)
    assert encoder.enlarge(image) is image


@pytest.fixture(scope="module")
def convolutional():
    return create_encoder({"name": "resnet18"}, strides=(1, 2, 4, 8, 16, 32)).eval()


@pytest.fixture(scope="module")
def transformer():
    spec = {"name": "vit_tiny_patch16_224", "depth": 4, "embed_dim": 32, "num_heads": 2}
    return create_encoder(spec, strides=(4, 8, 16, 32)).eval()


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 80), st.integers(1, 80))
def test_every_level_is_image_size_over_stride_rounded_up(convolutional, transformer, height, width):
    image = torch.rand(1, 3, height, width)
    for encoder in (convolutional, transformer):
        with torch.no_grad():
            sizes = [tuple(f.shape[1:]) for f in encoder(image)]
        assert sizes == [
            (c, -(-height // s), -(-width // s)) for c, s in zip(encoder.channels, encoder.strides, strict=True)
        ]


def test_padding_is_zeros_at_the_right_and_the_bottom_and_is_cropped_away(transformer):
    image = torch.rand(1, 3, 40, 50)
    with torch.no_grad():
        ours = transformer(image)[2]
        padded = transformer(F.pad(image, (0, 14, 0, 8)))[2]
    torch.testing.assert_close(ours, padded[..., :3, :4], rtol=0, atol=0)


def test_levels_coarser_than_a_patch_are_averages_and_finer_ones_are_interpolated(transformer):
    image = torch.rand(1, 3, 64, 96)
    net = transformer.net
    with torch.no_grad():
        maps = net.forward_intermediates(image, indices=[0, 1, 2, 3], intermediates_only=True, output_fmt="NCHW")
        fine, _, same, coarse = transformer(image)
    torch.testing.assert_close(fine, F.interpolate(maps[0], (16, 24), mode="bilinear"), rtol=0, atol=0)
    torch.testing.assert_close(same, maps[2], rtol=0, atol=0)
    torch.testing.assert_close(coarse, F.avg_pool2d(maps[3], 2), rtol=1e-5, atol=1e-5)
