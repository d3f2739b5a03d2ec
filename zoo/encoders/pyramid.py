"""A pyramid from any net: whatever sizes a net takes and gives, its features arrive at exactly ceil(H/s) x ceil(W/s).

The image is padded to what the net takes (or resized, where it takes one size only), what the padding added is cropped
away, and each map is brought to its level's size: bilinear, or averaged where it shrinks by 2 or more. Sizes are plain
arithmetic on shapes, so that torch.compile and torch.export can follow them with H and W left open.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.encoders.tracing import perhaps
from zoo.layers import averaging, resample, resize, separable

STEM_WIDTH = {1: 16, 2: 32}  # of strides that the net has no map for; finer strides cost more pixels, so less width


@dataclass(frozen=True)
class Plan:
    """What a pyramid has to know of one net for some strides (`zoo.encoders.timm.plan`); plain JSON data.

    arguments: what timm.create_model takes beside the name. net_channels: image channels that the net takes; where
    they are not the image's, a 1x1 convolution stands between. multiple, min_side: the image is padded until each side
    is a multiple of the one and not below the other; size: the only (height, width) that the net takes, or None.
    taps: indices for timm's `forward_intermediates`; tap_strides, tap_channels: what they give. rounds_up: a map of
    stride r is ceil(H/r) high for every H. levels: for each asked stride the taps, counted in `taps`, that make it
    (more than one are concatenated, none means a stem of our own). unused: parameters that feed none of the taps.
    """

    name: str
    arguments: dict[str, Any]
    net_channels: int
    multiple: int
    min_side: int
    size: tuple[int, int] | None
    taps: tuple[int, ...]
    tap_strides: tuple[float, ...]
    tap_channels: tuple[int, ...]
    rounds_up: bool
    strides: tuple[int, ...]
    levels: tuple[tuple[int, ...], ...]
    unused: tuple[str, ...]

    @property
    def kind(self) -> str:
        """ "free" (any size), "pad" (any size once padded) or "fixed" (the image is resized inside the encoder)."""
        if self.size:
            return "fixed"
        return "pad" if self.multiple > 1 else "free"

    @property
    def takes(self) -> str:
        """What becomes of an image of any size, in words."""
        if self.size:
            return f"any size, resized to {self.size[0]}x{self.size[1]} inside"
        return f"any size, padded to multiples of {self.multiple} inside" if self.multiple > 1 else "any size"


class Pyramid(nn.Module):
    """A net with timm's `forward_intermediates`, pruned to the plan's taps, as an encoder.

    channels, strides: per level, finest as asked. mean, std: one float per image channel, for whoever normalises.
    """

    def __init__(self, net: nn.Module, plan: Plan, in_channels: int, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.plan = plan
        self.strides = plan.strides
        self.mean, self.std = tuple(mean), tuple(std)
        widths = [STEM_WIDTH.get(stride, 32) for stride in plan.strides]
        self.channels = tuple(
            sum(plan.tap_channels[tap] for tap in taps) if taps else width
            for taps, width in zip(plan.levels, widths, strict=True)
        )
        self.net = net
        self.adapt = nn.Conv2d(in_channels, plan.net_channels, 1) if in_channels != plan.net_channels else nn.Identity()
        self.stems = nn.ModuleDict(
            {
                str(stride): stem(in_channels, width, stride)
                for stride, width, taps in zip(plan.strides, widths, plan.levels, strict=True)
                if not taps
            }
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """image (B, C, H, W), normalised; gives (B, channels[i], ceil(H / strides[i]), ceil(W / strides[i])) each."""
        height, width = image.shape[-2:]
        features = self.net.forward_intermediates(  # type: ignore[operator]
            self.enlarge(self.adapt(image)),
            indices=list(self.plan.taps),
            output_fmt="NCHW",
            intermediates_only=True,
        )
        levels = []
        for stride, taps in zip(self.strides, self.plan.levels, strict=True):
            if taps:
                maps = [self.fit(features[tap], self.plan.tap_strides[tap], stride, height, width) for tap in taps]
                levels.append(maps[0] if len(maps) == 1 else torch.cat(maps, dim=1))
            else:
                levels.append(self.stems[str(stride)](image))
        return levels

    def enlarge(self, image: Tensor) -> Tensor:
        """The image at a size that the net takes: padded with zeros at the right and the bottom, or resized."""
        plan = self.plan
        if plan.size:
            return resize(image, plan.size, antialias=True)
        if plan.multiple == plan.min_side == 1:
            return image
        below, right = (enlarged(side, plan) - side for side in image.shape[-2:])
        # not asked while a program is traced: the answer would fix a height and width that are left open
        if not torch.compiler.is_compiling() and below == right == 0:
            return image
        return F.pad(image, (0, right, 0, below))

    def fit(self, x: Tensor, tap_stride: float, stride: int, height: int, width: int) -> Tensor:
        """A map of stride `tap_stride` as the level of `stride` of an image of height x width."""
        plan = self.plan
        size = (ceil(height, stride), ceil(width, stride))
        if plan.size:  # its cells cover the whole image, in whatever proportion
            return resample(x, size)
        r = round(tap_stride)
        # where that is an open question, it is cropped: of an image that was not padded this takes the whole map
        if plan.multiple > 1 or perhaps(height < plan.min_side) or perhaps(width < plan.min_side):
            x = x[..., : ceil(height, r), : ceil(width, r)]
        if r == stride and plan.rounds_up:
            return x
        if stride >= 2 * r:
            return separable(x, averaging(x.shape[-2], size[0], x), averaging(x.shape[-1], size[1], x))
        if stride < r:  # enlarged many times faster in this layout, which convolutions take as well
            x = x.contiguous(memory_format=torch.channels_last)
        return resize(x, size)


def enlarged(side: int, plan: Plan) -> Any:
    """What a side is padded to: a multiple that it fits into, and not below the smallest."""
    whole = ceil(side, plan.multiple) * plan.multiple
    return torch.sym_max(whole, plan.min_side) if perhaps(whole < plan.min_side) else whole


def evenly(blocks: Sequence[int]) -> list[int]:
    """Four of the blocks, evenly spaced, the last included."""
    return [blocks[max(0, len(blocks) * quarter // 4 - 1)] for quarter in (1, 2, 3, 4)]


def in_depth_order(taps: Sequence[int], strides: Sequence[int]) -> list[tuple[int, ...]]:
    """Levels of a net of one stride: its four taps in depth order for 4, 8, 16 and 32; finer ones are stems."""
    return [() if stride < 4 else (taps[min(3, round(math.log2(stride)) - 2)],) for stride in strides]


def nearest_strides(tap_strides: Sequence[float], strides: Sequence[int]) -> list[tuple[int, ...]]:
    """Levels of a net with stages: the tap of nearest stride, the deepest of equals.

    Strides below 4 that no tap has are stems. What is deeper than the last level is concatenated onto it where that is
    32 or more: a net's last stage is often most of it.
    """
    depth = [math.log2(stride) for stride in tap_strides]

    def closest(wanted: float) -> int:
        return min(range(len(depth)), key=lambda tap: (round(abs(depth[tap] - wanted), 6), -tap))

    levels: list[tuple[int, ...]] = []
    for stride in strides:
        tap = closest(math.log2(stride))
        near = abs(depth[tap] - math.log2(stride)) < 0.5
        levels.append((tap,) if near or stride >= 4 else ())
    last = max(strides)
    if last >= 32:
        deeper = {closest(d) for d in depth if d >= math.log2(last) + 0.5}
        at = strides.index(last)
        levels[at] = (*levels[at], *sorted(deeper - set(levels[at])))
    return levels


def ceil(length: int, stride: int) -> int:
    """length / stride, rounded up, in integers alone."""
    return (length + stride - 1) // stride


def stem(in_channels: int, width: int, stride: int) -> nn.Sequential:
    """Two 3x3 convolutions on the image, for a stride (1 or 2, usually) that a net has no map of."""
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )
