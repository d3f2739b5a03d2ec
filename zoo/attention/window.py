"""Window attention: a pixel attends to the cells of its own window, with a learned bias for every offset between them.

Source: Liu et al. 2021, "Swin Transformer", arXiv 2103.14030, section 3.2, for windows of one map. Two things are ours:
keys may come from a coarser map, and windows at a border are clipped to the map, where Swin pads or rolls it. So no
padding exists that attention could see; for maps of whole windows both are the same function.
"""

import math
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import UserError


class Windows(NamedTuple):
    """Windows of one size that follow each other along an axis."""

    start: int  # in cells
    cells: int  # of each window
    pixels: int
    count: int


def windows(cells: int, pixels: int, window: int, shift: int, scale: int) -> list[Windows]:
    """An axis of `cells` cells of `scale` pixels each (the last may hold fewer) cut into windows of `window` cells.

    shift: cells of the first, clipped window; 0 = a whole one. One window that holds all cells is not shifted.
    """
    if cells <= window:
        return [Windows(0, cells, pixels, 1)]
    whole = (pixels // scale - shift) // window  # windows with all their cells and all their pixels
    rest = shift + whole * window
    found = [
        Windows(0, shift, scale * shift, 1),
        Windows(shift, window, scale * window, whole),
        Windows(rest, cells - rest, pixels - scale * rest, 1),
    ]
    return [w for w in found if w.cells and w.count]


class WindowAttention(nn.Module):
    """Multi-head attention within windows, of a map to itself or to a coarser one, in 2-D, 3-D or any other number.

    x (B, *size, channels) asks; memory (B, *cells, channels) answers, by default x itself; gives (B, *size, channels).
    mask (B, *cells): False for cells that nobody may see; a pixel that sees none gets the bias of `out`.
    window: cells of a window per axis; None = the whole map. scale: pixels of a cell per axis, with
    cells = ceil(size / scale); default 1. shift: cells by which the windows start earlier. position: a bias for each
    head and offset; it needs a window.
    Raises UserError for heads that don't divide the channels, and for maps of other axes than the window has.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        window: Sequence[int] | None,
        *,
        scale: Sequence[int] | None = None,
        shift: Sequence[int] | None = None,
        position: bool = True,
    ):
        super().__init__()
        if heads < 1 or channels % heads:
            raise UserError(f"{channels} channels can't be shared among {heads} heads; give a number that divides them.")
        if window is None and position:
            raise UserError(
                "A bias for relative positions needs a window, its table has a fixed size;"
                " give one, as large as the largest map if need be, or attend without position."
            )
        if window is not None and min(window) < 1:
            raise UserError(f"A window of {tuple(window)} cells holds nothing; give at least 1 along each axis.")
        self.heads = heads
        self.window = None if window is None else tuple(window)
        axes = len(window or scale or ())
        self.scale = tuple(scale or [1] * axes)
        self.shift = tuple(shift or [0] * axes)
        self.query_key_value = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        for linear in (self.query_key_value, self.out):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        if position:
            table = torch.empty(heads, *(r * (2 * w - 1) for w, r in zip(self.window, self.scale, strict=True)))
            self.bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        else:
            self.bias_table = None

    def forward(self, x: Tensor, memory: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        memory = x if memory is None else memory
        if mask is not None:
            memory = memory.masked_fill(~mask.unsqueeze(-1), 0)  # nothing times NaN is NaN
        axes = self._axes(x.shape[1:-1], memory.shape[1:-1])
        bias = self.bias()
        outputs = []
        for part in product(*axes):
            pixels = split(x, part, self.scale)
            cells = pixels if memory is x else split(memory, part)
            seen = None if mask is None else split(mask.unsqueeze(-1), part)
            outputs.append(join(self._attend(pixels, cells, self._scores(bias, part, seen)), part))
        for axis in reversed(range(len(axes))):  # side by side again, the last axis first
            step = len(axes[axis])
            if step > 1:
                outputs = [torch.cat(outputs[i : i + step], axis + 1) for i in range(0, len(outputs), step)]
        return outputs[0]

    def bias(self) -> Tensor | None:
        """(heads, *pixels, *cells) of a whole window: the table's entry i - r J + r (w - 1) for pixel i and cell J."""
        if self.bias_table is None:
            return None
        bias: Tensor = self.bias_table
        n = len(self.scale)
        for axis, (w, r) in enumerate(zip(self.window, self.scale, strict=True), start=1):
            bias = bias.unfold(axis, r * w, r)  # row k starts at entry r k: it is that of cell w - 1 - k
        return bias.permute(0, *range(n + 1, 2 * n + 1), *range(1, n + 1)).flip(list(range(n + 1, 2 * n + 1)))

    def _axes(self, size: Sequence[int], cells: Sequence[int]) -> list[list[Windows]]:
        """Along each axis, its windows."""
        scale, shift = self.scale or (1,) * len(size), self.shift or (0,) * len(size)
        window = self.window or cells
        if not len(size) == len(cells) == len(window) == len(scale):
            raise UserError(
                f"Attention of maps of {tuple(size)} to {tuple(cells)} was built for {len(window)} axes;"
                " give maps (B, *size, channels) with as many."
            )
        if list(cells) != [-(-n // r) for n, r in zip(size, scale, strict=True)]:
            raise UserError(
                f"A map of {tuple(size)} in cells of {scale} has no {tuple(cells)} cells;"
                " resize the memory to size / scale, rounded up."
            )
        return [windows(*axis) for axis in zip(cells, size, window, shift, scale, strict=True)]

    def _scores(self, bias: Tensor | None, part: Sequence[Windows], seen: Tensor | None) -> Tensor | None:
        """What is added to the scores of these windows: (1 or B * windows, heads or 1, pixels, cells), or bool."""
        if bias is not None:  # only differences count, so a clipped window's bias is the first part of a whole one's
            clip = [slice(w.pixels) for w in part] + [slice(w.cells) for w in part]
            bias = bias[(slice(None), *clip)].flatten(1, len(part)).flatten(2).unsqueeze(0)
        if seen is None:
            return bias
        seen = seen.squeeze(-1)[:, None, None]
        return seen if bias is None else torch.where(seen, bias, -math.inf)

    def _attend(self, pixels: Tensor, cells: Tensor, scores: Tensor | None) -> Tensor:
        """pixels (N, Q, channels), cells (N, K, channels), windows as the batch; gives (N, Q, channels)."""
        weight, b, channels = self.query_key_value.weight, self.query_key_value.bias, pixels.shape[-1]
        if cells is pixels:
            q, k, v = self.query_key_value(pixels).chunk(3, dim=-1)
        else:
            q = F.linear(pixels, weight[:channels], b[:channels])
            k, v = F.linear(cells, weight[channels:], b[channels:]).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        if scores is not None and scores.is_floating_point():
            scores = scores.to(q.dtype)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=scores)
        x = self.out(x.transpose(1, 2).flatten(2))
        return x


def split(x: Tensor, part: Sequence[Windows], scale: Sequence[int] | None = None) -> Tensor:
    """The windows `part` of a map (B, *size, C) as (B * windows, cells of one, C); with `scale`: their pixels."""
    n = len(part)
    for axis, w in enumerate(part):
        start, each = (w.start, w.cells) if scale is None else (w.start * scale[axis], w.pixels)
        x = x.narrow(2 * axis + 1, start, w.count * each).unflatten(2 * axis + 1, (w.count, each))
    x = x.permute(0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2), 2 * n + 1)
    return x.flatten(0, n).flatten(1, n)


def join(x: Tensor, part: Sequence[Windows]) -> Tensor:
    """The pixels of the windows `part`, (B * windows, pixels of one, C), as a piece of the map (B, *size, C)."""
    n = len(part)
    x = x.unflatten(1, [w.pixels for w in part]).unflatten(0, (-1, *(w.count for w in part)))
    x = x.permute(0, *(a for i in range(1, n + 1) for a in (i, i + n)), 2 * n + 1)
    for axis in range(1, n + 1):
        x = x.flatten(axis, axis + 1)
    return x
