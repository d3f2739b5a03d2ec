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
    number: int


def offsets(window: Sequence[int], scale: Sequence[int]) -> Tensor:
    """Where the flat table of relative positions has pixel i and cell J of a window: (*pixels, *cells), int32.

    Along an axis of w cells of r pixels it is i - r J + r (w - 1), from 0 to r (2 w - 1) - 1: the offset of their
    centres but for a constant.
    """
    n = len(window)
    index = torch.zeros((), dtype=torch.int32)
    for axis, (w, r) in enumerate(zip(window, scale, strict=True)):
        pixel, cell = torch.arange(r * w, dtype=torch.int32), torch.arange(w, dtype=torch.int32)
        along = pixel[:, None] - r * cell + r * (w - 1)
        shape = [1] * (2 * n)
        shape[axis], shape[n + axis] = r * w, w
        index = index * (r * (2 * w - 1)) + along.view(shape)
    return index


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
    return [w for w in found if w.cells and w.number]


class WindowAttention(nn.Module):
    """Multi-head attention within windows, of a map to itself or to a coarser one, in 2-D, 3-D or any other number.

    x (B, *size, channels) asks; memory (B, *cells, channels) answers, by default x itself; gives (B, *size, channels).
    mask (B, *cells): False for cells that nobody may see; a pixel that sees none gets the bias of `out`.
    window: cells of a window per axis; None = the whole map. scale: pixels of a cell per axis, with
    cells = ceil(size / scale); default 1. shift: cells by which the windows start earlier. position: a bias for each
    head and offset; it needs a window.
    Raises UserError for heads that don't divide the channels, and for maps that the window and scale don't fit.
    """

    index: Tensor

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
            raise UserError(
                f"{channels} channels can't be shared among {heads} heads; give a number that divides them."
            )
        if window is None and position:
            raise UserError(
                "A bias for relative positions needs a window, its table has a fixed size;"
                " give one, as large as the largest map if need be, or attend without position."
            )
        if window is not None and min(window) < 1:
            raise UserError(f"A window of {tuple(window)} cells holds nothing; give at least 1 along each axis.")
        if window is not None and any(not 0 <= s < w for s, w in zip(shift or (), window, strict=False)):
            raise UserError(
                f"A shift of {tuple(shift or ())} cells isn't within a window of {tuple(window)}; give less."
            )
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
        self.bias_table = None
        if self.window and position:
            table = torch.empty(heads, *(r * (2 * w - 1) for w, r in zip(self.window, self.scale, strict=True)))
            self.bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
            self.register_buffer("index", offsets(self.window, self.scale), persistent=False)

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
        """What is added to the scores of a whole window: (heads, *pixels, *cells)."""
        if self.bias_table is None:
            return None
        bias = self.bias_table.flatten(1).index_select(1, self.index.flatten())
        return bias.view(self.heads, *self.index.shape)

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
        if cells is pixels:
            q, k, v = self._heads(self.query_key_value(pixels))
        else:
            weight, bias, channels = self.query_key_value.weight, self.query_key_value.bias, pixels.shape[-1]
            (q,) = self._heads(F.linear(pixels, weight[:channels], bias[:channels]))
            k, v = self._heads(F.linear(cells, weight[channels:], bias[channels:]))
        if scores is not None and scores.is_floating_point():
            scores = scores.to(q.dtype)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=scores)
        x = x.transpose(1, 2)
        if torch.compiler.is_exporting():  # ONNX's parts of the attention have another layout, which no view may merge
            x = x.clone(memory_format=torch.contiguous_format)
        y: Tensor = self.out(x.flatten(2))
        return y

    def _heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """One or more projections (N, tokens, count * channels), each as (N, heads, tokens, channels / heads)."""
        split = x.unflatten(-1, (-1, self.heads, self.out.in_features // self.heads))
        return tuple(split.permute(2, 0, 3, 1, 4).unbind())


def split(x: Tensor, part: Sequence[Windows], scale: Sequence[int] | None = None) -> Tensor:
    """The windows `part` of a map (B, *size, C) as (B * windows, cells of one, C); with `scale`: their pixels."""
    starts = [w.start * r for w, r in zip(part, scale or [1] * len(part), strict=True)]
    sizes = [w.cells if scale is None else w.pixels for w in part]
    piece = [slice(a, a + w.number * n) for a, w, n in zip(starts, part, sizes, strict=True)]
    grid = [n for w, size in zip(part, sizes, strict=True) for n in (w.number, size)]
    x = x[(slice(None), *piece)].reshape(x.shape[0], *grid, x.shape[-1])
    n = 2 * len(part)
    x = x.permute(0, *range(1, n, 2), *range(2, n + 1, 2), n + 1)
    return x.reshape(-1, math.prod(sizes), x.shape[-1])


def join(x: Tensor, part: Sequence[Windows]) -> Tensor:
    """The pixels of the windows `part`, (B * windows, pixels of one, C), as a piece of the map (B, *size, C)."""
    n = len(part)
    x = x.view(-1, *(w.number for w in part), *(w.pixels for w in part), x.shape[-1])
    x = x.permute(0, *(axis for i in range(1, n + 1) for axis in (i, i + n)), 2 * n + 1)
    return x.reshape(-1, *(w.number * w.pixels for w in part), x.shape[-1])
