"""MEDUSA: one encoder-decoder body sees the whole image; a light head at each scale makes gates of what it saw.

Source: Aboutalebi et al. 2021, "MEDUSA: Multi-scale Encoder-Decoder Self-Attention" (arXiv 2110.06063). The paper's
idea is the single body with a head at every scale. Its network was never published as code: widths, norms and the form
of the gate are our recommendations, sized after what its authors state (29.2 M parameters, 29.1 GMAC with ResNet-50).
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.layers import ConvNorm, resample, resize

EPS = 1e-6  # so that an image of one value is divided by something


class Body(nn.Module):
    """A U-Net on the image at one small size, whatever the image's: context that is global at every scale.

    widths: channels at strides 1, 2, 4, ... of `size`, which is a multiple of the last of them; context: channels it
    gives. A lighter body is (16, 32, 64, 128, 256), a larger one (32, 64, 128, 256, 512).
    """

    def __init__(self, *, widths: Sequence[int], size: int, context: int):
        super().__init__()
        step = 2 ** (len(widths) - 1)
        if size < step or size % step:
            raise UserError(f"MEDUSA's body_size is {size}; with {len(widths)} widths it is a multiple of {step}.")
        self.size = (size, size)
        self.down = nn.ModuleList(block(i, o) for i, o in pairwise((1, *widths)))
        self.up = nn.ModuleList(block(below + skip, skip) for skip, below in pairwise(widths))
        self.out = nn.Conv2d(widths[0], context, 1)

    def forward(self, image: Tensor) -> Tensor:
        """image (B, C, H, W) as the encoder takes it; gives (B, context, size, size).

        The channels' mean, brought to `size` and freed of its own mean and deviation: each image by itself.
        """
        with torch.autocast(image.device.type, enabled=False):
            grey = resize(image.mean(dim=1, keepdim=True), self.size, antialias=True)
            centred = grey - grey.mean(dim=(2, 3), keepdim=True)
            x = centred / (centred.square().mean(dim=(2, 3), keepdim=True).sqrt() + EPS)
        skips = []
        for i, down in enumerate(self.down):
            x = down(x if i == 0 else nn.functional.max_pool2d(x, 2))
            skips.append(x)
        for up, skip in zip(reversed(self.up), reversed(skips[:-1]), strict=True):
            x = up(torch.cat([resize(x, skip.shape[-2:]), skip], dim=1))
        context: Tensor = self.out(x)
        return context


class Head(nn.Module):
    """One scale's gate on its features, made of the context and, with `local`, of the features themselves.

    f * (1 + gamma * tanh(...)): gamma, one number a channel, starts at zero, where this is f bit for bit. Written as a
    product, since f + f * gamma * a would turn -0.0 into 0.0.
    """

    def __init__(self, channels: int, *, context: int, width: int, local: bool):
        super().__init__()
        self.glob = nn.Conv2d(context, width, 3, padding=1)
        self.local = nn.Conv2d(channels, width, 1, bias=False) if local else None
        self.norm = nn.GroupNorm(8, width)  # no running statistics to disturb at batches of one or two
        self.out = nn.Conv2d(width, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, f: Tensor, context: Tensor) -> Tensor:
        """f (B, C, h, w), context (B, K, H, W); gives f's shape and dtype."""
        x = self.glob(resample(context, (f.shape[-2], f.shape[-1]), shrink=1))
        if self.local is not None:
            x = x + self.local(f)
        gate: Tensor = self.out(self.norm(x).relu()).tanh()
        return f * (1 + self.gamma * gate).to(f.dtype)


class Medusa(nn.Module):
    """The body and a head for each of `channels`; the features' owner decides where the heads act.

    widths, body_size: the body's; context: channels between body and heads; width: inside a head, a multiple of 8;
    local: heads see the features too. Its cost does not depend on the image's size but for the heads.
    """

    def __init__(
        self,
        channels: Sequence[int],
        *,
        widths: Sequence[int] = (24, 48, 96, 192, 384),
        body_size: int = 256,
        context: int = 16,
        width: int = 32,
        local: bool = True,
    ):
        super().__init__()
        if width < 8 or width % 8:
            raise UserError(f"MEDUSA's head width is {width}; it is a multiple of 8, the groups of its norm.")
        self.body = Body(widths=tuple(widths), size=body_size, context=context)
        self.heads = nn.ModuleList(Head(c, context=context, width=width, local=local) for c in channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def block(channels: int, width: int) -> nn.Sequential:
    """Two 3x3 convolutions with BatchNorm and ReLU."""
    first, second = ConvNorm(channels, width), ConvNorm(width, width)
    return nn.Sequential(first, nn.ReLU(inplace=True), second, nn.ReLU(inplace=True))
