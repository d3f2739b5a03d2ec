"""An image in overlapping tiles, the raw outputs blended by Gaussian weights that sum to 1 at every pixel.

Source of the weights: nnU-Net (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z), sigma an eighth of the tile. Here
they also fall to 0 some way before a border where the image was cut, whose pixels saw the cut, and tiles begin at
multiples of the net's grid, as the whole image does: a net that looks no further than that gives the same as on the
whole image. Borders of the image itself are no cuts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoo.inference.memory import Cost

Band = tuple[int, dict[str, Tensor], dict[str, Tensor]]  # its first row, raw outputs, the image and its planes

SMALLEST = 128  # a tile's side, or twice the grid where that is more


@dataclass(frozen=True)
class Tiling:
    """Tiles of at most side x side pixels, `batch` at once, at multiples of `grid`."""

    side: int
    grid: int
    batch: int = 1

    @property
    def overlap(self) -> int:
        """Pixels that neighbours share: a quarter of the side."""
        return max(self.side // 4 // self.grid, 1) * self.grid

    @property
    def margin(self) -> int:
        """Pixels at a cut border that have no weight: a quarter of the overlap."""
        return self.overlap // 4

    def along(self, length: int) -> list[slice]:
        """The fewest tiles that cover a side of the image, all of one length but for the last, which ends with it."""
        if length <= self.side:
            return [slice(0, length)]
        count = -(-(length - self.overlap) // (self.side - self.overlap))
        step = -(-(length - self.overlap) // (count * self.grid)) * self.grid
        count = -(-(length - self.overlap) // step)  # fewer where the steps were rounded up
        return [slice(i * step, min(i * step + step + self.overlap, length)) for i in range(count)]

    def weights(self, tiles: Sequence[slice]) -> list[Tensor]:
        """For each tile of one side its weights, float32; where tiles overlap they sum to 1."""
        length = tiles[-1].stop
        total = torch.zeros(length, dtype=torch.float64)
        found = []
        for tile in tiles:
            size = tile.stop - tile.start
            place = torch.arange(size) + 0.5
            depth = torch.full((size,), size / 2, dtype=torch.float64)  # from the nearest cut, at most to the centre
            for cut, distance in ((tile.start > 0, place), (tile.stop < length, size - place)):
                depth = depth.minimum(distance) if cut else depth
            bell, edge = (torch.exp(-32 * (1 - 2 * d / size) ** 2) for d in (depth, torch.tensor(float(self.margin))))
            found.append((bell - edge).clamp(min=0) if depth.min() < size / 2 else torch.ones_like(bell))
            total[tile] += found[-1]
        return [(weight / total[tile]).float() for weight, tile in zip(found, tiles, strict=True)]


def fit(cost: Cost, budget: int, size: tuple[int, int], pixel: int, grid: int, *, bands: bool) -> Tiling | int:
    """The largest tiles whose work stays within the budget, or the bytes that the smallest ones need.

    size: (H, W) of the image; pixel: its bytes per pixel with what goes in beside it; bands: whether finished rows
    are answered at once, so that the sums of one row of tiles are all that is kept.
    """
    height, width = size

    def needed(side: int, batch: int = 1) -> int:
        rows = min(side, height)
        if bands:  # sums and their lower part, kept for the next row; the pixels of a row of tiles as read and turned
            return cost(batch * rows * min(side, width)) + rows * width * (2 * cost.raw + 2 * pixel)
        whole = height * width * (cost.raw + pixel)
        return max(cost(batch * rows * min(side, width)), height * width * (cost.raw + cost.finish)) + whole

    side = smallest(grid)
    if needed(side) > budget:
        return needed(side)
    while side < max(size) and needed(side + grid) <= budget:
        side += grid
    tiling = Tiling(side, grid)
    tall, wide = (tiles[0].stop for tiles in (tiling.along(height), tiling.along(width)))
    rest = budget - needed(side) + cost(min(side, height) * min(side, width))
    batch = 1
    while batch < len(tiling.along(width)) and cost((batch + 1) * tall * wide) <= rest:
        batch += 1
    return Tiling(side, grid, batch)


def smallest(grid: int) -> int:
    """The side of the smallest tiles."""
    return max(-(-SMALLEST // grid), 2) * grid


def blend(
    run: Callable[..., Mapping[str, Any]],
    maps: Sequence[str],
    read: Callable[[slice], dict[str, Tensor]],
    size: tuple[int, int],
    tiling: Tiling,
) -> Iterator[Band]:
    """Bands of finished rows from the top down, maps (1, K, rows, W) summed up in float32.

    read: a slice of rows -> `image` and the planes, (1, n, rows, W).
    """
    rows, columns = tiling.along(size[0]), tiling.along(size[1])
    heights, widths = tiling.weights(rows), tiling.weights(columns)
    waiting: dict[str, Tensor] = {}  # rows that the next tiles add to
    for i, row in enumerate(rows):
        band = read(row)
        sums: dict[str, Tensor] = {}
        for group in _groups(columns, tiling.batch):
            tiles = {name: torch.cat([x[..., columns[j]] for j in group]) for name, x in band.items()}
            outputs = run(tiles.pop("image"), **tiles)
            for name in maps:
                x = outputs[name].to(torch.promote_types(outputs[name].dtype, torch.float32))
                if name not in sums:
                    sums[name] = x.new_zeros(1, x.shape[1], row.stop - row.start, size[1])
                for part, j in zip(x, group, strict=True):
                    weight = heights[i][:, None] * widths[j]
                    sums[name][0, ..., columns[j]] += part * weight.to(part.device)
            del outputs, tiles
        for name, x in waiting.items():
            sums[name][..., : x.shape[-2], :] += x
        stop = rows[i + 1].start if i + 1 < len(rows) else row.stop
        done = stop - row.start
        waiting = {name: x[..., done:, :].clone() for name, x in sums.items()}
        finished, inputs = ({name: x[..., :done, :] for name, x in some.items()} for some in (sums, band))
        yield row.start, finished, inputs


def _groups(columns: Sequence[slice], most: int) -> Iterator[list[int]]:
    """Neighbouring tiles of one width, at most so many."""
    group: list[int] = []
    for j, column in enumerate(columns):
        first = columns[group[0]] if group else column
        if len(group) == most or column.stop - column.start != first.stop - first.start:
            yield group
            group = []
        group.append(j)
    yield group
