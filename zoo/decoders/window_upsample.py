"""WAU-Net: a U-Net whose steps up are attention of fine pixels to the coarse cells around them.

Source: Li et al. 2021, "More than Encoder: Introducing Transformer Decoder to Upsample", arXiv 2106.10637 (BIBM 2022).
No code was published; the step itself and what is recommended in it stand in `zoo.attention.upsample`.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.attention.upsample import AttentionUpsample
from zoo.errors import UserError
from zoo.layers import ConvNorm, resize
from zoo.registry import register_decoder, register_model


class Interpolate(nn.Module):
    """The plain step: deep (B, C, h, w) at the size of skip, bilinear."""

    def forward(self, deep: Tensor, skip: Tensor) -> Tensor:
        return resize(deep, skip.shape[-2:])


@register_decoder(tasks=("segmentation",), paper="arXiv 2106.10637", licence="Apache-2.0")
class WindowUpsample(nn.Module):
    """U-Net decoder with (Window) Attention Upsample between neighbouring strides.

    features: one (B, C_i, ceil(H/s_i), ceil(W/s_i)) per stride; gives logits (B, num_outputs, H, W).
    strides: of the features, each a multiple of the one before. widths: output channels per block, the deepest first,
    one per stride. Between two strides stands a step; windows and heads are one number for all or one for each, the
    deepest first. windows: side in cells of the deeper map; null = one window, the whole map, which needs position
    "none"; 0 = a plain bilinear step, as the last one from the finest stride to the image always is. heads: null = one
    for each 32 channels. query: "skip", the fine pixels ask and the deep cells answer, or "deep", the enlarged deep
    map asks and the encoder's pixels answer. position: "relative" or "none". mlp_ratio: hidden width of the MLP /
    width. depth: layers of a step, every second one of them with windows that lie half a window off, unless shift is
    false. zero_init: each step starts as the interpolation alone.
    All defaults are recommendations, the paper's own are not known to us.
    """

    open_sizes = False  # the number of windows follows the image's size, which an exported program must then fix

    def __init__(
        self,
        channels: Sequence[int],
        num_outputs: int,
        *,
        strides: Sequence[int] = (2, 4, 8, 16, 32),
        widths: Sequence[int] = (256, 128, 64, 32, 16),
        windows: int | Sequence[int | None] | None = 8,
        heads: int | Sequence[int] | None = None,
        query: str = "skip",
        position: str = "relative",
        mlp_ratio: float = 4.0,
        depth: int = 1,
        shift: bool = True,
        zero_init: bool = True,
    ):
        super().__init__()
        if not len(widths) == len(strides) == len(channels):
            raise UserError(
                f"window_upsample has {len(widths)} widths {tuple(widths)} for {len(channels)} feature levels"
                f" (strides {', '.join(map(str, strides))}); give one width per level."
            )
        if position not in ("relative", "none"):
            raise UserError(f"window_upsample does not know position {position!r}; choose 'relative' or 'none'.")
        scales = [deep // fine for fine, deep in pairwise(self.strides(strides=strides))][::-1]
        windows, heads = _each("windows", windows, len(scales)), _each("heads", heads, len(scales))
        below, *skips = reversed(channels)
        self.ups = nn.ModuleList()
        self.conv1 = nn.ModuleList()
        for width, skip, scale, window, count in zip(widths[:-1], skips, scales, windows, heads, strict=True):
            up: nn.Module = Interpolate()
            if window != 0:
                up = AttentionUpsample(
                    below,
                    skip,
                    width,
                    None if window is None else (window, window),
                    scale=(scale, scale),
                    heads=count,
                    query=query,
                    position=position == "relative",
                    mlp_ratio=mlp_ratio,
                    depth=depth,
                    shift=shift,
                    zero_init=zero_init,
                )
            self.ups.append(up)
            self.conv1.append(ConvNorm((width if window != 0 else below) + skip, width))
            below = width
        self.ups.append(Interpolate())  # to the image, where no features wait
        self.conv1.append(ConvNorm(below, widths[-1]))
        self.conv2 = nn.ModuleList(ConvNorm(width, width) for width in widths)
        self.head = nn.Conv2d(widths[-1], num_outputs, kernel_size=3, padding=1)
        for conv, _ in [*self.conv1, *self.conv2]:
            nn.init.kaiming_uniform_(conv.weight, nonlinearity="relu")
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.get_parameter("bias"))

    @staticmethod
    def strides(*, strides: Sequence[int] = (2, 4, 8, 16, 32)) -> tuple[int, ...]:
        if any(a < 1 or b <= a or b % a for a, b in pairwise(strides)):
            raise UserError(
                f"window_upsample has strides {tuple(strides)}; give them from fine to coarse,"
                " each a multiple of the one before."
            )
        return tuple(strides)

    def forward(self, features: list[Tensor], image: Tensor) -> dict[str, Tensor]:
        x, *skips = reversed(features)
        for up, conv1, conv2, skip in zip(self.ups, self.conv1, self.conv2, [*skips, image], strict=True):
            x = up(x, skip)
            if skip is not image:
                x = torch.cat([x, skip], dim=1)
            x = F.relu(conv1(x), inplace=True)
            x = F.relu(conv2(x), inplace=True)
        return {"logits": self.head(x)}


def _each(option: str, value: Any, steps: int) -> list[Any]:
    """An option of every step."""
    if value is None or isinstance(value, int):
        return [value] * steps
    if len(value) != steps:
        raise UserError(
            f"window_upsample has {len(value)} {option} {tuple(value)} for {steps} steps;"
            " give one number for all, or one per step between neighbouring strides, the deepest first."
        )
    return list(value)


@register_model(task="segmentation", paper="arXiv 2106.10637", licence="Apache-2.0")
def wau_unet() -> dict[str, Any]:
    """WAU in a U-Net on ResNet-50, for the slices of Synapse: 9 classes, 224 x 224; the windows are our choice."""
    decoder = dict(name="window_upsample", windows=7)  # 7, 14, 28 and 56 cells are whole windows
    return dict(encoder="resnet50", decoder=decoder, num_classes=9, input_size=[224, 224])
