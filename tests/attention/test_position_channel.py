"""Position and channel attention: equal to their formulas, fused, and without ever holding all weights."""

import json
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from zoo.attention.position_channel import ChannelAttention, PositionAttention


def position(channels: int = 6, qk_channels: int = 2, groups: int = 1) -> PositionAttention:
    torch.manual_seed(0)
    attention = PositionAttention(channels, qk_channels, groups).double()
    nn.init.uniform_(attention.gamma, 0.5, 1.5)
    return attention


def channel(groups: int = 1) -> ChannelAttention:
    attention = ChannelAttention(groups).double()
    nn.init.uniform_(attention.gamma, 0.5, 1.5)
    return attention


def maps(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)


def position_by_formula(attention: PositionAttention, x: Tensor) -> Tensor:
    q, k, v = (conv(x).flatten(2) for conv in (attention.query, attention.key, attention.value))
    weights = torch.einsum("bci,bcj->bij", q, k).softmax(dim=-1)
    return x + attention.gamma * torch.einsum("bij,bcj->bci", weights, v).view_as(x)


def channel_by_formula(attention: ChannelAttention, x: Tensor) -> Tensor:
    flat = x.flatten(2)
    energy = flat @ flat.mT
    weights = (energy.max(dim=-1, keepdim=True).values - energy).softmax(dim=-1)
    return x + attention.gamma * (weights @ flat).view_as(x)


@pytest.mark.parametrize("qk_channels", [1, 2, 6, 9])
def test_position_attention_is_its_formula_gradients_too(qk_channels):
    attention, x = position(qk_channels=qk_channels), maps(2, 6, 5, 7)
    inputs = [x, *attention.parameters()]
    ours, truth = attention(x), position_by_formula(attention, x)
    torch.testing.assert_close(ours, truth, atol=1e-12, rtol=0)
    for a, b in zip(
        torch.autograd.grad(ours.square().sum(), inputs), torch.autograd.grad(truth.square().sum(), inputs), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


def test_channel_attention_is_its_formula_gradients_too():
    attention, x = channel(), maps(2, 6, 5, 7)
    inputs = [x, *attention.parameters()]
    ours, truth = attention(x), channel_by_formula(attention, x)
    torch.testing.assert_close(ours, truth, atol=1e-12, rtol=0)
    for a, b in zip(
        torch.autograd.grad(ours.square().sum(), inputs), torch.autograd.grad(truth.square().sum(), inputs), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


def test_groups_do_not_see_one_another():
    x = maps(2, 12, 5, 7)
    both, grouped = position(groups=2), channel(groups=2)
    alone, plain = position(), channel()
    for i, part in enumerate(x.chunk(2, dim=1)):
        for name, value in both.named_parameters():
            alone.get_parameter(name).data = value.data.chunk(2)[i]
        plain.gamma.data = grouped.gamma.data[i : i + 1]
        torch.testing.assert_close(both(x).chunk(2, dim=1)[i], alone(part))
        torch.testing.assert_close(grouped(x).chunk(2, dim=1)[i], plain(part))


@pytest.mark.parametrize("attention", [PositionAttention(6, 2), ChannelAttention()])
def test_both_start_as_the_identity(attention):
    x = torch.randn(1, 6, 3, 4)
    assert torch.equal(attention(x), x)


@pytest.mark.parametrize("attention", [PositionAttention(6, 2), ChannelAttention()])
def test_both_are_counted_on_a_device_without_numbers(attention):
    assert attention.to("meta")(torch.empty(1, 6, 3, 4, device="meta")).shape == (1, 6, 3, 4)


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 1)])
def test_a_single_row_column_or_pixel_will_do(size):
    x = maps(1, 6, *size)
    torch.testing.assert_close(position()(x), position_by_formula(position(), x))
    torch.testing.assert_close(channel()(x).shape, x.shape)


def test_the_fused_kernel_takes_it_forward_and_backward():
    attention, x = PositionAttention(16, 2, groups=2).requires_grad_(), torch.randn(2, 32, 9, 7, requires_grad=True)
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
        attention(x).square().sum().backward()
    assert x.grad.isfinite().all()
    assert attention.gamma.grad.any()


PEAK = """
import json, torch
from zoo.attention.position_channel import PositionAttention

def grown(work):
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    work()
    return status("VmHWM") - before

def status(field):
    return int(next(line for line in open("/proc/self/status") if line.startswith(field)).split()[1]) / 1024

def formula(x):
    q, k, v = (conv(x).flatten(2) for conv in (attention.query, attention.key, attention.value))
    return x + attention.gamma * (v @ (q.mT @ k).softmax(dim=-1).mT).view_as(x)

torch.set_num_threads(1)
attention, x = PositionAttention(8, 1), torch.randn(1, 8, 80, 80, requires_grad=True)
attention(x[..., :8, :8]).sum().backward()
answers = {"fused": grown(lambda: attention(x).sum().backward()), "formula": grown(lambda: formula(x).sum().backward())}
print(json.dumps(answers))
"""


def test_no_map_of_all_pairs_of_positions_is_ever_held():
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    peak = json.loads(done.stdout)
    all_pairs = 4 * 6400**2 / 2**20  # MiB
    assert peak["fused"] < 0.25 * all_pairs
    assert peak["formula"] > all_pairs  # what is measured is there to be seen


def test_channel_attention_is_exact_under_autocast():
    attention, x = channel().float(), torch.randn(1, 8, 16, 16)
    plain = attention(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attention(x), plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_finite_where_its_sums_would_not(dtype):
    x = torch.full((1, 4, 16, 16), 30.0).to(dtype)  # 256 squares of 900: above float16's 65504
    assert channel().to(dtype)(x).isfinite().all()
