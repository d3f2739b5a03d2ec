"""The small layers that several parts share: the one resize rule, its like as matrices, a convolution with its norm."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def resize(x: Tensor, size: tuple[int, ...], *, antialias: bool = False) -> Tensor:
    """x (B, C, h, w) brought to (B, C, *size), bilinear with half-pixel centres (align_corners=False).

    The only resize rule of the library; a paper's other rule is an option with a name where the paper needs it.
    antialias: for pictures that shrink (Pillow's bilinear, for floats); features and logits are taken without.
    """
    # while a program is traced the question is not asked: its answer would fix a height and width that are left open
    if not torch.compiler.is_compiling() and x.shape[-2:] == tuple(size):
        return x
    if antialias:  # which a CPU does not do in half precision
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        return F.interpolate(exact, size, mode="bilinear", align_corners=False, antialias=True).to(x.dtype)
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


class ConvNorm(nn.Sequential):
    """A bias-free convolution with "same" padding for odd kernels, then BatchNorm; no activation.

    kernel: an odd size, or (height, width) of odd sizes.
    """

    def __init__(self, channels: int, out_channels: int, kernel: int | tuple[int, int] = 3, dilation: int = 1):
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2 * dilation, width // 2 * dilation)
        super().__init__(
            nn.Conv2d(channels, out_channels, (height, width), padding=padding, dilation=dilation, bias=False),
            nn.BatchNorm2d(out_channels),
        )


def averaging(length: int, out: int, like: Tensor) -> Tensor:
    """Matrix (out, length) that averages as `adaptive_avg_pool1d` does, whose export to ONNX is wrong at open sizes.

    Cell i is the mean of floor(i * length / out) up to, not including, ceil((i + 1) * length / out).
    """
    cell, source = _axes(length, out, like)
    first = cell * length // out
    last = ((cell + 1) * length + out - 1) // out
    inside = (source >= first) & (source < last)
    return inside.to(_precise(like)) / (last - first)


def interpolating(length: int, out: int, like: Tensor) -> Tensor:
    """Matrix (out, length) that interpolates linearly with half-pixel centres, as `zoo.layers.resize` does."""
    cell, source = _axes(length, out, like)
    centre = ((cell.to(_precise(like)) + 0.5) * length / out - 0.5).clamp(0, length - 1)
    return (1 - (centre - source).abs()).clamp(min=0)


def resample(x: Tensor, size: tuple[int, int], *, shrink: int = 2) -> Tensor:
    """x (B, C, h, w) at (B, C, *size): along each side averaged where it shrinks by `shrink` or more, else linear."""
    matrices = []
    for length, out in zip(x.shape[-2:], size, strict=True):
        shrinks = torch.full((), shrink * out, device=x.device) <= length  # a tensor: an open size stays open
        matrices.append(torch.where(shrinks, averaging(length, out, x), interpolating(length, out, x)))
    return separable(x, *matrices)


def separable(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows @ x @ columns.T for every channel, in float32 or better also under autocast; x's dtype again."""
    batch, channels, height, width = x.shape
    tall, wide = rows.shape[0], columns.shape[0]
    # the meta device, on which nets are counted and asked, knows no autocast
    precisely = nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)
    with precisely:
        # mm and bmm by name: matmul chooses between them by comparing sizes, which fixes open ones
        across = x.to(rows.dtype).reshape(-1, width).mm(columns.T).reshape(batch * channels, height, wide)
        down = torch.bmm(rows.expand(batch * channels, tall, height), across)
    return down.reshape(batch, channels, tall, wide).to(x.dtype)


def _axes(length: int, out: int, like: Tensor) -> tuple[Tensor, Tensor]:
    return torch.arange(out, device=like.device)[:, None], torch.arange(length, device=like.device)


def _precise(like: Tensor) -> torch.dtype:
    return torch.promote_types(like.dtype, torch.float32)
