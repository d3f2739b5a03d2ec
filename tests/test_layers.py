"""The resize rule as matrices equals torch's own, in the forms that export."""

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.layers import averaging, interpolating, resample, separable

LENGTHS = st.integers(1, 60)


@settings(deadline=None, max_examples=100)
@given(LENGTHS, LENGTHS, LENGTHS, LENGTHS)
def test_averaging_matrices_equal_adaptive_average_pooling(h, w, out_h, out_w):
    x = torch.rand(1, 2, h, w, dtype=torch.float64)
    ours = separable(x, averaging(h, out_h, x), averaging(w, out_w, x))
    assert (ours - F.adaptive_avg_pool2d(x, (out_h, out_w))).abs().max() <= 1e-15


@settings(deadline=None, max_examples=100)
@given(LENGTHS, LENGTHS, LENGTHS, LENGTHS)
def test_interpolating_matrices_equal_bilinear_interpolation(h, w, out_h, out_w):
    x = torch.rand(1, 2, h, w, dtype=torch.float64)
    ours = separable(x, interpolating(h, out_h, x), interpolating(w, out_w, x))
    theirs = F.interpolate(x, (out_h, out_w), mode="bilinear", align_corners=False)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_each_side_is_averaged_where_it_shrinks_by_two_and_interpolated_elsewhere():
    x = torch.rand(1, 1, 14, 14, dtype=torch.float64)
    averaged = F.adaptive_avg_pool2d(x, (7, 14))
    expected = F.interpolate(averaged, (7, 20), mode="bilinear", align_corners=False)
    torch.testing.assert_close(resample(x, (7, 20)), expected, rtol=0, atol=1e-12)


def test_averages_keep_their_precision_under_autocast():
    x = torch.full((1, 1, 9, 9), 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        down = separable(x, averaging(9, 3, x), averaging(9, 3, x))
    assert down.dtype == torch.float32
    torch.testing.assert_close(down, torch.ones(1, 1, 3, 3), rtol=0, atol=1e-6)
