"""Linear decoder: one 1x1 convolution on all levels, brought to the finest.

Source: the linear probe of DINOv2 (Oquab et al. 2023, arXiv 2304.07193, section 7.4).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.layers import resize
from zoo.registry import register_decoder


@register_decoder(tasks=("segmentation",), paper="arXiv 2304.07193", licence="Apache-2.0")
class Linear(nn.Module):
    """The honest yardstick for a frozen backbone: what one linear layer reads out of its features.

    features: one (B, C_i, ceil(H/s_i), ceil(W/s_i)) per stride; gives logits (B, num_outputs, ceil(H/4), ceil(W/4)).
    dropout: the share of channels dropped in training, 0 <= dropout < 1.
    """

    strides = (4, 8, 16, 32)

    def __init__(self, channels: Sequence[int], num_outputs: int, *, dropout: float = 0.0):
        super().__init__()
        if not 0 <= dropout < 1:
            raise UserError(f"linear has dropout {dropout}; give the share of channels to drop, from 0 to below 1.")
        self.norm = nn.BatchNorm2d(sum(channels))
        self.drop = nn.Dropout2d(dropout)
        self.head = nn.Conv2d(sum(channels), num_outputs, kernel_size=1)

    def forward(self, features: list[Tensor], image: Tensor) -> dict[str, Tensor]:
        size = features[0].shape[-2:]
        x = torch.cat([resize(f, size) for f in features], dim=1)  # B, sum(C), H/4, W/4
        return {"logits": self.head(self.drop(self.norm(x)))}
