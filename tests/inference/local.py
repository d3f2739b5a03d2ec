"""A net that looks a few pixels far, with the few things that predict asks of a net."""

from typing import Any

import torch
from torch import Tensor, nn

from zoo.datasets.intensity import Intensity
from zoo.layers import resize
from zoo.tasks.segmentation import Segmentation


class Task(Segmentation):
    """Segmentation that takes planes, and on demand prompts."""

    def __init__(self, planes: dict[str, int] | None = None, prompts: tuple[str, ...] = (), *, pixelwise: bool = True):
        super().__init__(2)
        self.planes, self.pixelwise = planes or {}, pixelwise  # type: ignore[misc]
        self.prompts = {name: lambda image: torch.zeros(len(image), 1, 2) for name in prompts}  # type: ignore[misc]


class Local(nn.Module):
    """Down to a half and up again: the answer at a pixel depends on those up to 9 away, and on its place modulo 2.

    more: outputs beside the maps.
    """

    def __init__(self, task: Task | None = None, grid: int | None = 8, more: tuple[str, ...] = ()):
        super().__init__()
        torch.manual_seed(0)
        self.task, self.grid, self.more = task or Task(), grid, more
        self.hidden, self.fixed, self.least = (0, 0), None, 0
        self.intensity, self.in_channels = Intensity(), 3
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.down = nn.Conv2d(3 + sum(self.task.planes.values()), 8, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 2, 3, padding=1)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, image: Tensor, **inputs: Tensor) -> dict[str, Any]:
        self.seen.append(tuple(image.shape))
        x = torch.cat([image, *(inputs[name] for name in self.task.planes)], dim=1)
        x = torch.relu(self.deep(torch.relu(self.down(x))))
        x = nn.functional.interpolate(x, scale_factor=2)[..., : image.shape[-2], : image.shape[-1]]
        return {"logits": resize(self.head(x), image.shape[-2:]), **{name: x.mean((1, 2, 3)) for name in self.more}}

    def ready(self, device: torch.device) -> nn.Module:
        return self.eval().to(device)

    def finish(self, outputs: Any, inputs: Any, threshold: float | None = None) -> dict[str, Tensor]:
        return self.task.answer(outputs, threshold, inputs)
