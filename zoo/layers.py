"""The small layers that several parts share: the one resize rule, and a convolution with its norm."""

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
    return F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=antialias)


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
