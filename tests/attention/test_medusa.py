"""MEDUSA's body and heads by themselves: sizes as stated, one image at a time, nothing changed at the start."""

import pytest
import torch

from zoo.attention.medusa import Body, Head, Medusa
from zoo.errors import UserError


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("widths", "millions"),
    [((24, 48, 96, 192, 384), 4.42), ((16, 32, 64, 128, 256), 1.96), ((32, 64, 128, 256, 512), 7.85)],
)
def test_the_body_is_as_large_as_stated(widths, millions):
    assert round(count(Body(widths=widths, size=256, context=16)) / 1e6, 2) == millions


def test_the_heads_of_a_resnet50_are_as_large_as_stated():
    assert round(count(Medusa((64, 256, 512, 1024, 2048)).heads) / 1e6, 2) == 0.28


def test_the_body_sees_each_image_by_itself_whatever_its_size_light_and_contrast():
    torch.manual_seed(0)
    body = Body(widths=(8, 16, 32), size=64, context=4).eval()
    image = torch.rand(2, 3, 75, 98, dtype=torch.float64)
    body.double()
    context = body(image)
    assert context.shape == (2, 4, 64, 64)
    torch.testing.assert_close(body(image[1:]), context[1:], rtol=0, atol=1e-12)
    torch.testing.assert_close(body(5 * image + 3), context, rtol=0, atol=1e-4)


def test_a_constant_image_is_finite():
    body = Body(widths=(8, 16), size=32, context=4)
    assert torch.isfinite(body(torch.full((1, 3, 40, 40), 0.7))).all()


@pytest.mark.parametrize("size", [(1, 1), (16, 24), (32, 32), (50, 33)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_new_head_hands_features_on_bit_for_bit(size, dtype):
    head = Head(24, context=4, width=16, local=True)
    f = torch.randn(2, 24, *size).to(dtype)
    f[0, 0, 0, 0] = -0.0
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
        out = head(f, torch.randn(2, 4, 32, 32))
    assert out.dtype == dtype
    assert torch.equal(out, f)
    assert torch.equal(torch.signbit(out), torch.signbit(f))


def test_context_is_averaged_where_features_are_coarser_and_interpolated_where_finer():
    head = Head(8, context=2, width=8, local=False)
    torch.nn.init.ones_(head.gamma)
    context, f = torch.randn(1, 2, 32, 32), torch.ones(1, 8, 8, 50)
    pooled = torch.nn.functional.adaptive_avg_pool2d(context, (8, 32))
    expected = torch.nn.functional.interpolate(pooled, (8, 50), mode="bilinear")
    gate = head.out(head.norm(head.glob(expected)).relu()).tanh()
    torch.testing.assert_close(head(f, context), 1 + gate, rtol=1e-5, atol=1e-5)


def test_gamma_learns_at_the_first_step_and_the_body_from_the_second():
    torch.manual_seed(0)
    medusa = Medusa((8,), widths=(8, 16), body_size=32, context=4, width=8)
    image, f = torch.rand(2, 3, 40, 40), torch.randn(2, 8, 10, 10)
    optimizer = torch.optim.SGD(medusa.parameters(), lr=0.1)
    moved = []
    for _ in range(2):
        optimizer.zero_grad()
        medusa.heads[0](f, medusa.body(image)).square().mean().backward()
        moved.append((medusa.heads[0].gamma.grad.abs().max() > 0, medusa.body.out.weight.grad.abs().max() > 0))
        optimizer.step()
    assert moved == [(True, False), (True, True)]


def test_options_that_cannot_be_are_told():
    with pytest.raises(UserError, match="body_size is 250; with 5 widths it is a multiple of 16"):
        Medusa((8,), body_size=250)
    with pytest.raises(UserError, match="head width is 20; it is a multiple of 8"):
        Medusa((8,), width=20)
