"""Position and channel attention: each position looks at all positions, each channel at all channels.

Source: Fu et al. 2019, "Dual Attention Network for Scene Segmentation", arXiv 1809.02983, section 3.2 and 3.3.
Both start as the identity: what attention finds is weighed by gamma, which begins at 0.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PositionAttention(nn.Module):
    """x + gamma * softmax(q k^T) v over positions, without scaling: (B, groups * channels, h, w), the same out.

    qk_channels: of queries and keys. groups: maps side by side on the channel axis, each with weights of its own, that
    don't see one another.
    """

    def __init__(self, channels: int, qk_channels: int, groups: int = 1):
        super().__init__()
        self.query = nn.Conv2d(groups * channels, groups * qk_channels, kernel_size=1, groups=groups)
        self.key = nn.Conv2d(groups * channels, groups * qk_channels, kernel_size=1, groups=groups)
        self.value = nn.Conv2d(groups * channels, groups * channels, kernel_size=1, groups=groups)
        self.gamma = nn.Parameter(torch.zeros(groups))
        self.channels, self.qk_channels, self.groups = channels, qk_channels, groups

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.tokens(conv(x)) for conv in (self.query, self.key, self.value))  # B, groups, h * w, head
        # The kernels that never hold all h * w x h * w weights want heads of one width; zeros change no product.
        found = F.scaled_dot_product_attention(q, k, v, scale=1.0)[..., : self.channels]
        return weighed(x, found.mT, self.gamma)

    def tokens(self, x: Tensor) -> Tensor:
        """(B, groups * c, h, w) as (B, groups, h * w, head), zeros beyond c."""
        x = x.unflatten(1, (self.groups, -1)).flatten(3).mT
        return F.pad(x, (0, max(self.channels, self.qk_channels) - x.shape[-1])).contiguous()


class ChannelAttention(nn.Module):
    """x + gamma * softmax(-x x^T) x over channels: (B, groups * channels, h, w), the same out.

    Channels have no projections, and the least similar one weighs most, as in the paper's code. groups: as in
    `PositionAttention`. Sums over all positions leave half precision's range, so the weights are computed in float32.
    """

    def __init__(self, groups: int = 1):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(groups))
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.unflatten(1, (self.groups, -1)).flatten(3)  # B, groups, channels, h * w
        kind = x.device.type
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            exact = tokens.to(torch.promote_types(x.dtype, torch.float32))
            weights = (exact @ exact.mT).neg().softmax(dim=-1)
            found = weights @ exact
        return weighed(x, found.to(x.dtype), self.gamma)


def weighed(x: Tensor, found: Tensor, gamma: Tensor) -> Tensor:
    """x (B, groups * C, h, w) and, by each group's gamma, what attention found (B, groups, C, h * w); laid out as x."""
    found = found.unflatten(3, x.shape[-2:]) * gamma.view(-1, 1, 1, 1)
    both: Tensor = x.unflatten(1, found.shape[1:3]) + found
    return both.flatten(1, 2)
