"""From images to their answers: whole where that fits the memory budget, else by tiles, their raw outputs blended."""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from zoo.datasets.intensity import Intensity
from zoo.datasets.rows import Rows
from zoo.errors import ImageError, UserError
from zoo.inference.augment import augmented
from zoo.inference.memory import MOST, Cost, budget, count, told
from zoo.inference.sources import Item
from zoo.inference.spilled import Spilled
from zoo.inference.tiles import Band, Tiling, blend, fit, smallest

PRECISIONS: dict[str, torch.dtype | None] = {"32": None, "bf16": torch.bfloat16, "16": torch.float16}
WORK = 3 / 4  # of the budget; the rest is for images and answers that are kept in memory
KEPT = 16  # an image or answer of more than this part of the budget stays in a file


class Net(Protocol):
    """What one can predict with: a model, or a program exported from one.

    ready(device): the function (image, **inputs) -> raw outputs, at its fastest there. finish: the task's answer.
    grid: tiles begin at multiples of this, so that the net divides them as it divides the whole; None for a net that
    takes the image whole, because it resizes it. least: pixels that it computes on at least, however
    small the image. hidden: see `zoo.inference.memory.count`. fixed: (H, W) of a program
    that takes no other, and cannot be counted at others: `hidden` is then one number, for that size.
    """

    task: Any
    intensity: Intensity

    @property
    def in_channels(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def grid(self) -> int | None: ...
    @property
    def least(self) -> int: ...
    @property
    def hidden(self) -> Sequence[int]: ...
    @property
    def fixed(self) -> tuple[int, int] | None: ...
    def ready(self, device: torch.device) -> Callable[..., dict[str, Any]]: ...
    def finish(
        self, outputs: Mapping[str, Any], inputs: Mapping[str, Tensor], threshold: float | None
    ) -> dict[str, Tensor]: ...


class Answers:
    """The answers of a net on a device, within a budget. Raises ImageError for what doesn't fit and can't be tiled.

    memory: bytes; None takes a share of what is free. drop: keys of the answer that nobody wants.
    """

    def __init__(
        self,
        net: Net,
        device: torch.device,
        *,
        precision: str,
        tta: str,
        threshold: float | None,
        memory: int | None,
        drop: Sequence[str],
    ):
        self.net, self.device, self.precision, self.threshold, self.drop = net, device, precision, threshold, drop
        if tta == "d4" and net.fixed and net.fixed[0] != net.fixed[1]:
            height, width = net.fixed
            raise UserError(
                f"tta='d4' turns {height}x{width} into {width}x{height}, which this program doesn't take; use"
                " tta='flips', or a square program."
            )
        self.pixelwise = bool(getattr(net.task, "pixelwise", False))
        self.run = augmented(net.ready(device), net.task.maps, tta, alone=self.pixelwise)
        self.given = memory
        self.memory = memory or budget(device)  # of what is free once the weights are there
        self.work = None if self.memory is None else int(WORK * self.memory)
        self.most = in_memory(device, self.memory)
        self._cost: Cost | None = None
        self._outputs: set[str] = set()

    def __call__(self, items: Sequence[Item]) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """(pixels, answer) of each; the items are of one shape. What is large is memory-mapped."""
        plan = self._plan(items[0], len(items))
        if isinstance(plan, Tiling):
            for item in items:
                yield self._tiled(item, plan)
            return
        for start in range(0, len(items), plan):
            yield from self._whole(items[start : start + plan])

    def _plan(self, item: Item, wanted: int) -> Tiling | int:
        """How many images of this shape are computed together, or how one of them is tiled."""
        task, (height, width) = self.net.task, item.pixels.shape[:2]
        pixels = max(height * width, self.net.least)
        if self.work is None or self.memory is None or wanted * pixels * MOST <= self.work:
            return wanted
        if self.net.fixed and (height, width) != self.net.fixed:
            return 1  # the program tells what it takes
        prompts = {name: x for name, x in item.inputs.items() if name not in task.planes}
        cost, grid = self._counted(prompts), self.net.grid

        def together(n: int) -> int:  # what images take that are brought to one size, each of them takes
            return n * cost(height * width) if grid is None else cost(n * height * width)

        if most := next((n for n in range(wanted, 0, -1) if together(n) <= self.work), 0):
            return most
        why = ""
        if prompts:
            why = f"an image with `{next(iter(prompts))}` is not tiled"
        elif self.net.fixed:
            why = "the program has one size, so it is not tiled"
        elif grid is None:
            why = "the model resizes the whole image, so it is not tiled"
        elif not self.pixelwise and (beside := sorted(self._outputs - {*task.maps})):
            why = f"the answer of the task {task.name!r} needs `{beside[0]}` of the whole image, so it is not tiled"
        if why or grid is None:
            if self.given is None:
                return 1  # what is free was a guess; a budget that somebody named is not
            raise ImageError(
                f"{item.path or 'An image'} of {height}x{width} needs about {told(cost(height * width) / WORK)}, memory"
                f" is {told(self.memory)}, and {why}; give it that much, or a smaller image."
            )
        pixel = sum(4 * x.shape[2] for x in (item.pixels, *item.inputs.values()))
        found = fit(cost, self.work, (height, width), pixel, grid, bands=self.pixelwise)
        if isinstance(found, Tiling):
            return found
        least, name = told(found / WORK), item.path or "an image"
        what = f"The smallest tiles of {name} of {height}x{width} need"
        if max(height, width) <= smallest(grid):
            what = f"{item.path or 'An image'} of {height}x{width} needs"
        raise ImageError(
            f"{what} {least}, memory is {told(self.memory)}; give at least memory='{least}' (--memory {least})."
        )

    def _counted(self, prompts: Mapping[str, np.ndarray]) -> Cost:
        if self._cost is None and self.net.fixed:
            self._cost = Cost(((0, 0), (math.prod(self.net.fixed), self.net.hidden[0])), 0, 0)
        if self._cost is None:
            task = self.net.task

            def finish(outputs: dict[str, Any], inputs: dict[str, Tensor]) -> Any:
                self._outputs |= set(outputs)
                return self.net.finish(outputs, inputs, self.threshold)

            with self._computing():
                self._cost = count(
                    self.run,
                    finish,
                    tuple(task.maps),
                    {"image": self.net.in_channels, **task.planes},
                    torch.zeros((), device=self.device, dtype=self.net.dtype),
                    {name: torch.from_numpy(x[None]).to(self.device) for name, x in prompts.items()},
                    self.net.hidden,
                )
        return self._cost

    def _whole(self, items: Sequence[Item]) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        pixels = [item.pixels[:] for item in items]
        image = self._tensor(pixels)
        inputs = {
            name: self._tensor([item.inputs[name][:] for item in items])
            if name in self.net.task.planes
            else torch.from_numpy(np.stack([item.inputs[name] for item in items])).to(self.device)
            for name in items[0].inputs
        }
        with self._computing():
            answer = self.net.finish(self.run(image, **inputs), {"image": image, **inputs}, self.threshold)
        arrays = {key: value.cpu().numpy() for key, value in answer.items() if key not in self.drop}
        for i, image_pixels in enumerate(pixels):
            yield image_pixels, {key: value[i] for key, value in arrays.items()}

    def _tiled(self, item: Item, tiling: Tiling) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        height, width = item.pixels.shape[:2]
        sources = {"image": item.pixels, **item.inputs}
        pixels = Kept(height, self.most) if isinstance(item.pixels, Rows) else None

        def read(rows: slice) -> dict[str, Tensor]:
            band = {name: source[rows] for name, source in sources.items()}
            if pixels is not None:
                pixels.add("image", rows.start, band["image"], axis=0)
            return {name: self._tensor([x]) for name, x in band.items()}

        answer = Kept(height, self.most)
        with self._computing():
            bands = blend(self.run, self.net.task.maps, read, (height, width), tiling)
            for start, outputs, inputs in bands if self.pixelwise else [_joined(bands)]:
                rows = outputs[self.net.task.maps[0]].shape[-2]
                step = max(1, tiling.side**2 // width) if self.pixelwise else rows
                for top in range(0, rows, step):
                    part, beside = (
                        {name: x[..., top : top + step, :] for name, x in some.items()} for some in (outputs, inputs)
                    )
                    for key, value in self.net.finish(part, beside, self.threshold).items():
                        if key not in self.drop:
                            answer.add(key, start + top, value[0].cpu().numpy(), axis=-2)
        image = item.pixels if pixels is None else pixels.arrays()["image"]
        return np.asanyarray(image), answer.arrays()

    def _tensor(self, pixels: list[np.ndarray]) -> Tensor:
        """(B, C, H, W) in [0, 1], channels-last in memory, as convolutions like it."""
        stacked = torch.from_numpy(np.stack(pixels)).to(self.device).permute(0, 3, 1, 2)
        return (stacked / 255 if stacked.dtype == torch.uint8 else stacked).to(self.net.dtype)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        kind = PRECISIONS[self.precision]
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, kind or torch.bfloat16, enabled=kind is not None),
        ):
            yield


def in_memory(device: torch.device, memory: int | None) -> int:
    """Bytes up to which an image or an array of its answer is held in the host's memory."""
    host = memory if device.type == "cpu" else budget(torch.device("cpu"))
    return sys.maxsize if host is None else host // KEPT


class Kept:
    """Arrays that come by rows from the top down: in memory, or in files where one takes more than `most` bytes."""

    def __init__(self, height: int, most: int):
        self._height, self._most = height, most
        self._arrays: dict[str, np.ndarray | Spilled] = {}
        self._ends: dict[str, int] = {}

    def add(self, name: str, start: int, rows: np.ndarray, axis: int) -> None:
        """Rows from `start` on, along an axis; those that came before are left out. Single numbers are kept as such."""
        if rows.ndim < 2:
            self._arrays[name] = rows
            return
        axis %= rows.ndim
        if name not in self._arrays:
            shape = (*rows.shape[:axis], self._height, *rows.shape[axis + 1 :])
            large = math.prod(shape) * rows.dtype.itemsize > self._most
            self._arrays[name] = Spilled(shape, rows.dtype, axis) if large else np.empty(shape, rows.dtype)
            self._ends[name] = 0
        before, stop = self._ends[name] - start, start + rows.shape[axis]
        places, array = (slice(None),) * axis, self._arrays[name]
        new, where = rows[(*places, slice(before, None))], slice(self._ends[name], stop)
        if isinstance(array, Spilled):
            array[where] = new
        else:
            array[(*places, where)] = new
        self._ends[name] = stop

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: x.array() if isinstance(x, Spilled) else x for name, x in self._arrays.items()}


def _joined(bands: Iterable[Band]) -> Band:
    """The whole image's outputs and inputs of its bands."""
    _, *both = zip(*bands, strict=True)
    outputs, inputs = ({name: torch.cat([part[name] for part in parts], dim=-2) for name in parts[0]} for parts in both)
    return 0, outputs, inputs
