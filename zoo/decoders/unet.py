"""U-Net: the deepest features climb up level by level and meet the encoder's on the way.

Source: Ronneberger et al. 2015, arXiv 1505.04597, in the form that segmentation_models_pytorch 0.6 made common: "same"
padding, BatchNorm, an ImageNet backbone as the contracting path. Its Unet's weights convert, see KEYS.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.layers import ConvNorm, resize
from zoo.registry import register_decoder

# segmentation_models_pytorch.Unet -> ours. Its encoders taken from timm stand one level deeper, in `encoder.model`.
KEYS = (
    (r"encoder\.(?:model\.)?(.*)", r"encoder.net.\1"),
    (r"decoder\.blocks\.(\d)\.(conv[12])\.(.*)", r"decoder.\2.\1.\3"),
    (r"segmentation_head\.0\.(.*)", r"decoder.head.\1"),
)


@register_decoder(tasks=("segmentation",), paper="arXiv 1505.04597", licence="Apache-2.0", keys=KEYS)
class Unet(nn.Module):
    """U-Net decoder, equal to segmentation_models_pytorch's at its defaults.

    features: one (B, C_i, ceil(H/s_i), ceil(W/s_i)) per stride; gives logits (B, num_outputs, H, W).
    widths: output channels per block, the deepest first, one per stride. upsample: "nearest", "bilinear" or
    "transposed": a transposed convolution of 2x2 to the block's width, cropped where the next map has an odd side.
    """

    strides = (2, 4, 8, 16, 32)

    def __init__(
        self,
        channels: Sequence[int],
        num_outputs: int,
        *,
        widths: Sequence[int] = (256, 128, 64, 32, 16),
        upsample: str = "nearest",
    ):
        super().__init__()
        if len(widths) != len(channels):
            raise UserError(
                f"unet has {len(widths)} widths {tuple(widths)} for {len(channels)} feature levels"
                f" (strides {', '.join(map(str, self.strides))}); give one width per level."
            )
        if upsample not in ("nearest", "bilinear", "transposed"):
            raise UserError(f"unet does not know upsample {upsample!r}; choose 'nearest', 'bilinear' or 'transposed'.")
        self.upsample = upsample
        deepest, *skips = reversed(channels)
        below = [deepest, *widths[:-1]]
        if upsample == "transposed":
            self.up = nn.ModuleList(
                nn.ConvTranspose2d(deep, width, kernel_size=2, stride=2)
                for deep, width in zip(below, widths, strict=True)
            )
            below = list(widths)
        self.conv1 = nn.ModuleList(
            ConvNorm(deep + skip, width) for deep, skip, width in zip(below, [*skips, 0], widths, strict=True)
        )
        self.conv2 = nn.ModuleList(ConvNorm(width, width) for width in widths)
        self.head = nn.Conv2d(widths[-1], num_outputs, kernel_size=3, padding=1)
        for conv, _ in [*self.conv1, *self.conv2]:  # the start that segmentation_models_pytorch trains from
            nn.init.kaiming_uniform_(conv.weight, nonlinearity="relu")
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.get_parameter("bias"))

    def forward(self, features: list[Tensor], image: Tensor) -> dict[str, Tensor]:
        x, *skips = reversed(features)
        for level, (conv1, conv2, partner) in enumerate(zip(self.conv1, self.conv2, [*skips, image], strict=True)):
            x = self.enlarge(x, partner, level)
            if partner is not image:  # at the image's size no features wait
                x = torch.cat([x, partner], dim=1)
            x = F.relu(conv1(x), inplace=True)
            x = F.relu(conv2(x), inplace=True)
        return {"logits": self.head(x)}

    def enlarge(self, x: Tensor, partner: Tensor, level: int) -> Tensor:
        """x at the height and width of `partner`."""
        height, width = partner.shape[-2:]
        if self.upsample == "transposed":
            up: Tensor = self.up[level](x)  # of ceil sizes: at most one row and one column too many
            return up[..., :height, :width]
        if self.upsample == "bilinear":
            return resize(x, (height, width))
        return F.interpolate(x, (height, width), mode="nearest")
