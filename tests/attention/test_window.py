"""Window attention: the definition's numbers, nothing seen that should not be, any size."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.attention.window import WindowAttention
from zoo.errors import UserError

sys.path.insert(0, str(Path(__file__).parent.parent / "parity"))
from fill import uniform
from wau_reference import attend

CHANNELS, HEADS = 8, 2


def attention(window, scale=None, shift=None, **options) -> WindowAttention:
    """In float64, with scores that are far from equal."""
    torch.manual_seed(0)
    module = WindowAttention(CHANNELS, HEADS, window, scale=scale, shift=shift, **options).double().eval()
    for parameter in module.parameters():
        torch.nn.init.uniform_(parameter, -1, 1)
    return module


def maps(size, scale, batch: int = 1):
    """What asks (B, *size, C) and what answers (B, *cells, C)."""
    cells = [-(-n // r) for n, r in zip(size, scale, strict=True)]
    return (torch.from_numpy(uniform(str(n), (batch, *n, CHANNELS), -1, 1)) for n in (tuple(size), tuple(cells)))


def definition(module: WindowAttention, x, memory, mask=None) -> np.ndarray:
    """The reference on the first of the batch, between the module's own projections."""
    w, b = (t.detach().numpy() for t in module.query_key_value.parameters())
    q, k, v = (
        t[0].numpy() @ w[i * CHANNELS :][:CHANNELS].T + b[i * CHANNELS :][:CHANNELS]
        for i, t in enumerate((x, memory, memory))
    )
    table = module.bias_table.detach().numpy()
    got = attend(q, k, v, table, module.window, module.shift, module.scale, mask)
    w, b = (t.detach().numpy() for t in module.out.parameters())
    return got @ w.T + b


@st.composite
def settings_of(draw):
    """Maps of 2 or 3 axes, of any size against their window, whole or not, shifted or not."""
    axes = draw(st.integers(2, 3))
    longest = 11 if axes == 2 else 5
    scale = [draw(st.integers(1, 3)) for _ in range(axes)]
    size = [draw(st.integers(1, longest)) for _ in range(axes)]
    window = [draw(st.integers(1, 4)) for _ in range(axes)]
    shift = [draw(st.integers(0, w - 1)) for w in window]
    return size, scale, window, shift


@settings(max_examples=40, deadline=None)
@given(settings_of(), st.booleans())
def test_equals_the_definition(found, grad):
    size, scale, window, shift = found
    module = attention(window, scale, shift)
    x, memory = maps(size, scale)
    with torch.set_grad_enabled(grad):  # with gradients torch takes another kernel
        got = module(x, memory)[0].detach().numpy()
    np.testing.assert_allclose(got, definition(module, x, memory), rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [(12, 8), (13, 7), (1, 9)])
def test_self_attention_equals_the_definition(size):
    module = attention((4, 3), shift=(2, 1))
    x, _ = maps(size, (1, 1))
    with torch.no_grad():
        np.testing.assert_allclose(module(x)[0].numpy(), definition(module, x, x), rtol=0, atol=1e-10)


def test_equals_swins_rolled_and_masked_windows_where_they_are_whole():
    from timm.models.swin_transformer import SwinTransformerBlock
    from timm.models.swin_transformer import WindowAttention as Swin

    block = SwinTransformerBlock(CHANNELS, (12, 8), num_heads=HEADS, window_size=4, shift_size=2).double().eval()
    theirs: Swin = block.attn
    ours = attention((4, 4), shift=(2, 2))
    theirs.qkv.load_state_dict(ours.query_key_value.state_dict())
    theirs.proj.load_state_dict(ours.out.state_dict())
    with torch.no_grad():
        theirs.relative_position_bias_table.copy_(ours.bias_table.flatten(1).T)
        x, _ = maps((12, 8), (1, 1), batch=2)
        torch.testing.assert_close(ours(x), block._attn(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("window", [(8, 8), (20, 20), None])
def test_one_window_is_global_attention(window, grad):
    module = attention(window, (2, 2), shift=(3, 3) if window else None, position=window is not None)
    if window:
        torch.nn.init.zeros_(module.bias_table)
    x, memory = maps((15, 16), (2, 2), batch=2)
    with torch.set_grad_enabled(grad):
        got = module(x, memory).detach()
    with torch.no_grad():
        w, b = module.query_key_value.weight, module.query_key_value.bias
        parts = [
            F.linear(t, w[i * CHANNELS :][:CHANNELS], b[i * CHANNELS :][:CHANNELS])
            .flatten(1, 2)
            .unflatten(-1, (HEADS, -1))
            .transpose(1, 2)
            for i, t in enumerate((x, memory, memory))
        ]
        whole = F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
        torch.testing.assert_close(got, module.out(whole).view_as(got), rtol=0, atol=1e-12)


@pytest.mark.parametrize("position", [True, False])
@pytest.mark.parametrize("rubbish", [1e6, float("nan"), float("inf")])
def test_what_stands_in_masked_cells_changes_nothing(rubbish, position):
    module = attention((3, 2), (2, 2), (1, 1), position=position)
    x, memory = maps((9, 14), (2, 2), batch=2)
    mask = torch.ones(memory.shape[:-1], dtype=torch.bool)
    mask[0, 3:] = mask[1, :, 4:] = False
    spoiled = memory.masked_fill(~mask[..., None], rubbish).requires_grad_()
    expected = module(x, memory, mask)
    got = module(x, spoiled, mask)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    got.square().sum().backward()
    for tensor in (spoiled, *module.parameters()):
        assert tensor.grad.isfinite().all()
    if position:
        cut = definition(module, x, memory, mask[0].numpy())
        np.testing.assert_allclose(got[0].detach().numpy(), cut, rtol=0, atol=1e-10)


@pytest.mark.parametrize("grad", [True, False])
def test_pixels_that_see_nothing_get_the_bias_of_the_projection(grad):
    module = attention((2, 2), (2, 2))
    x, memory = maps((8, 8), (2, 2))
    mask = torch.ones(memory.shape[:-1], dtype=torch.bool)
    mask[:, :2, :2] = False
    with torch.set_grad_enabled(grad):
        got = module(x, memory, mask)
    assert got.isfinite().all()
    torch.testing.assert_close(got[:, :4, :4], module.out.bias.expand(1, 4, 4, -1), rtol=0, atol=1e-12)


def test_cells_of_other_windows_are_not_seen():
    module = attention((2, 2), (2, 2))
    x, memory = maps((9, 9), (2, 2))
    moved = memory.clone()
    moved[:, 2:] += 1
    with torch.no_grad():
        before, after = module(x, memory), module(x, moved)
    assert torch.equal(before[:, :4], after[:, :4])
    assert (before[:, 4:] != after[:, 4:]).all()


def test_a_mirrored_map_under_a_mirrored_table_gives_the_mirrored_answer():
    module = attention((2, 3), (2, 2))
    x, memory = maps((8, 12), (2, 2))
    with torch.no_grad():
        there = module(x, memory)
        module.bias_table.copy_(module.bias_table.flip(1, 2))
        torch.testing.assert_close(module(x.flip(1, 2), memory.flip(1, 2)).flip(1, 2), there, rtol=0, atol=1e-12)


def test_a_batch_of_two_is_two_batches_of_one():
    module = attention((3, 4), (2, 1), (1, 2))
    x, memory = maps((11, 9), (2, 1), batch=2)
    with torch.no_grad():
        both = torch.cat([module(x[:1], memory[:1]), module(x[1:], memory[1:])])
        torch.testing.assert_close(module(x, memory), both, rtol=0, atol=1e-12)


def test_gradients_are_those_of_the_function():
    module = attention((2, 2), (2, 2), (1, 1))
    x, memory = (t.requires_grad_() for t in maps((5, 6), (2, 2)))
    names = [name for name, _ in module.named_parameters()]

    def run(x, memory, *parameters):
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x, memory))

    assert torch.autograd.gradcheck(run, (x, memory, *module.parameters()), fast_mode=True)


def test_every_entry_of_the_table_belongs_to_an_offset():
    for scale in (1, 2, 3):
        module = attention((3, 2), (scale, scale))
        assert module.index.unique().tolist() == list(range(scale * 5 * scale * 3))
    assert [key for key in module.state_dict() if "index" in key] == []


def test_half_precision_stays_near():
    x, memory = (t.float() for t in maps((21, 18), (2, 2)))
    module = attention((4, 4), (2, 2), (2, 2)).float()
    with torch.no_grad():
        exact = module(x, memory)
        for kind in (torch.bfloat16, torch.float16):
            got = module.to(kind)(x.to(kind), memory.to(kind)).float()
            assert (got - exact).abs().max() < 0.05 * exact.abs().max()
        with torch.autocast("cpu", torch.bfloat16):
            assert module.float()(x, memory).isfinite().all()


def test_wrong_options_and_maps_are_refused():
    with pytest.raises(UserError, match="10 channels can't be shared among 4 heads"):
        WindowAttention(10, 4, (2, 2))
    with pytest.raises(UserError, match="needs a window"):
        WindowAttention(8, 2, None)
    with pytest.raises(UserError, match=r"A window of \(0, 2\) cells"):
        WindowAttention(8, 2, (0, 2))
    with pytest.raises(UserError, match=r"A shift of \(1, 2\) cells"):
        WindowAttention(8, 2, (2, 2), shift=(1, 2))
    module = attention((2, 2), (2, 2))
    x, memory = maps((8, 8), (2, 2))
    with pytest.raises(UserError, match=r"has no \(3, 4\) cells"):
        module(x, memory[:, :3])
    with pytest.raises(UserError, match="built for 2 axes"):
        module(x[None], memory[None])
