"""Attention Upsample: fine pixels collect what coarse cells know, added to plain interpolation.

Source: Li et al. 2021, "More than Encoder: Introducing Transformer Decoder to Upsample", arXiv 2106.10637: a
decoder of the Transformer, conditioned on the contracting path, plus bilinear upsampling; within windows it is Window
Attention Upsample. No code was published. What is built on these two sentences is our recommendation: which map asks,
windows, heads, position, norms, MLP and initialisation.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.attention.window import WindowAttention
from zoo.errors import UserError

MODES = {2: "bilinear", 3: "trilinear"}


class DecoderLayer(nn.Module):
    """The Transformer decoder's layer with its norms in front: attention to the memory, then an MLP.

    Self-attention of the pixels is left out: it would cost a cell's number of pixels times what this costs.
    """

    def __init__(self, attention: WindowAttention, channels: int, mlp_ratio: float):
        super().__init__()
        self.norm_query = nn.LayerNorm(channels)
        self.norm_memory = nn.LayerNorm(channels)
        self.attention = attention
        self.norm_mlp = nn.LayerNorm(channels)
        hidden = int(mlp_ratio * channels)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels))

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.attention(self.norm_query(x), self.norm_memory(memory), mask)
        x = x + self.mlp(self.norm_mlp(x))
        return x


class AttentionUpsample(nn.Module):
    """A drop-in for interpolation to a lateral map's size: Attention Upsample, or Window Attention Upsample.

    deep (B, deep_channels, *small), skip (B, skip_channels, *big) in 2-D or 3-D; gives (B, out_channels, *big).
    scale: pixels of `skip` per cell of `deep` along each axis; a `deep` that isn't ceil(big / scale) is resized first.
    window: cells per axis, None = the whole map. width: channels of the attention, by default out_channels. heads: by
    default one for each 32 channels. query: "skip" = the lateral pixels ask and deep cells answer; "deep" = the
    enlarged deep pixels ask and lateral pixels answer, in windows of as many pixels. depth: layers; with `shift`, the
    windows of every second one lie half a window off. position: relative, or none. mlp_ratio: hidden width / width.
    shortcut: a 1x1 convolution before the interpolation; it can be left out where the channels are equal.
    zero_init: start as the interpolation alone.
    mask (B, *size of the map that answers): False for what nobody may see.
    Raises UserError for an option out of its range.
    """

    def __init__(
        self,
        deep_channels: int,
        skip_channels: int,
        out_channels: int,
        window: Sequence[int] | None,
        *,
        scale: Sequence[int] = (2, 2),
        width: int | None = None,
        heads: int | None = None,
        query: str = "skip",
        depth: int = 1,
        shift: bool = True,
        position: bool = True,
        mlp_ratio: float = 4.0,
        shortcut: bool = True,
        zero_init: bool = True,
    ):
        super().__init__()
        if query not in ("skip", "deep"):
            raise UserError(f"There is no query {query!r}; choose 'skip' or 'deep'.")
        width = out_channels if width is None else width
        if depth < 1 or int(mlp_ratio * width) < 1:
            raise UserError(f"depth is {depth} and mlp_ratio {mlp_ratio}; give at least one layer and a ratio above 0.")
        if len(scale) not in MODES or min(scale) < 1:
            raise UserError(f"The scale is {tuple(scale)}; give a whole number for each of two or three axes.")
        if not shortcut and deep_channels != out_channels:
            raise UserError(f"{deep_channels} channels can't become {out_channels} without a shortcut; leave it in.")
        if heads is None:
            heads = next(h for h in range(max(1, width // 32), 0, -1) if width % h == 0)
        self.query, self.scale = query, tuple(scale)
        source, memory = (skip_channels, deep_channels) if query == "skip" else (deep_channels, skip_channels)
        self.query_proj = nn.Linear(source, width)
        self.memory_proj = nn.Linear(memory, width)
        steps = (1,) * len(scale) if query == "skip" else self.scale  # windows in cells of the memory
        cells = None if window is None else [w * s for w, s in zip(window, steps, strict=True)]
        half = None if window is None or not shift else [w // 2 * s for w, s in zip(window, steps, strict=True)]
        self.layers = nn.ModuleList(
            DecoderLayer(
                WindowAttention(
                    width,
                    heads,
                    cells,
                    scale=self.scale if query == "skip" else None,
                    shift=half if i % 2 else None,
                    position=position,
                ),
                width,
                mlp_ratio,
            )
            for i in range(depth)
        )
        self.project = nn.Linear(width, out_channels)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        if zero_init:
            nn.init.zeros_(self.project.weight)
        self.shortcut = nn.Linear(deep_channels, out_channels) if shortcut else nn.Identity()

    def forward(self, deep: Tensor, skip: Tensor, mask: Tensor | None = None) -> Tensor:
        size = skip.shape[2:]
        cells = tuple(-(-n // r) for n, r in zip(size, self.scale, strict=True))
        if deep.shape[2:] != cells:
            deep = F.interpolate(deep, cells, mode=MODES[len(cells)], align_corners=False)
        deep, skip = deep.movedim(1, -1), skip.movedim(1, -1)
        x, memory = (skip, deep) if self.query == "skip" else (deep, skip)
        if mask is not None:
            memory = memory.masked_fill(~mask.unsqueeze(-1), 0)  # or what is hidden would reach weights as 0 * NaN
        x, memory = self.query_proj(x), self.memory_proj(memory)
        if self.query == "deep":
            x = self.enlarge(x, size)
        for layer in self.layers:
            x = layer(x, memory, mask)
        # weights of the interpolation sum to 1, so the shortcut may come before it, on fewer pixels
        y: Tensor = self.enlarge(self.shortcut(deep), size) + self.project(x)
        return y.movedim(-1, 1)

    def enlarge(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """x (B, *small, C) interpolated by the scale, then cropped: pixel i lies over cell i // scale at any size."""
        factor = [float(r) for r in self.scale]
        x = F.interpolate(x.movedim(-1, 1), scale_factor=factor, mode=MODES[len(factor)], align_corners=False)
        for axis, n in enumerate(size, start=2):
            x = x.narrow(axis, 0, n)
        return x.movedim(1, -1)
