"""A budget of memory: what is free, and what a net takes for an image, found by counting the tensors of two small runs.

Counting is exact and the same on every machine, so that a budget always gives the same tiles; what libraries take
beside their tensors (workspaces, reordered copies) is allowed for by a margin.
"""

import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zoo.errors import UserError

SHARE = 0.75  # of what is free, where no budget is given
MARGIN = 2.8  # resident memory over counted tensors: 1.3 to 2.5 on a CPU, the most beside other work
MOST = 2**13  # bytes per pixel that no net was seen to take; images that fit even so need no counting
UNITS = (
    {"B": 1}
    | {f"{k}B": 1000**i for i, k in enumerate("KMGT", 1)}
    | {f"{k}IB": 1024**i for i, k in enumerate("KMGT", 1)}
)
V2 = ("memory.max", "memory.current", "file", "shmem")  # limit, used, of memory.stat the pages of files, a tmpfs's
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache", "total_shmem")
SIDES = (128, 256)  # of the images that are counted


def parse(memory: str | int | float) -> int:
    """Bytes of 4e9, "4GB" (10^9 each) or "4GiB" (2^30 each). Raises UserError for anything else, and for nothing."""
    match = re.fullmatch(r"\s*(\d+\.?\d*)\s*([KMGT]?I?B)?\s*", str(memory).upper())
    if isinstance(memory, bool) or not match:
        if isinstance(memory, bool) or not isinstance(memory, int | float) or not math.isfinite(memory) or memory <= 0:
            raise UserError(f"memory is {memory!r}; give bytes, or a text such as '4GB' or '500MB'.")
        return int(memory)
    found = int(float(match[1]) * UNITS[match[2] or "B"])
    if found < 1:
        raise UserError(f"memory is {memory!r}; give more than nothing, such as '4GB'.")
    return found


def told(count: float) -> str:
    """Bytes as `parse` reads them, rounded up, so that what is told is enough."""
    return f"{math.ceil(count / 1e6)}MB" if count < 1e10 else f"{math.ceil(count / 1e9)}GB"


def budget(device: torch.device) -> int | None:
    """Bytes to work with where nobody named them: a share of what is free."""
    available = free(device)
    return None if available is None else int(SHARE * available)


def free(device: torch.device) -> int | None:
    """Bytes free on a device for this process, a container's limit included; None where the system doesn't tell."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + unused)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    if device.type != "cpu":
        return None
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        found = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2  # no system tells less than this
        except (AttributeError, ValueError, OSError):
            return None
    return min([found, *limits()])


def limits(root: Path = Path("/")) -> Iterator[int]:
    """Bytes that each control group above this process leaves it: a container's, a job's or a service's limit.

    Of version 2 and version 1; the groups are found by /proc/self/cgroup, and where a container sees only its own,
    at the mount's root. Pages of files count as free, since they are given back when they are needed, but for
    those of a tmpfs.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:  # "0::/user.slice/job" of version 2, "5:memory:/docker/1f" of version 1
        _, kinds, path = line.split(":", 2)
        mount = root / "sys/fs/cgroup" / ("" if not kinds else "memory")
        most, used, cached, kept = V1 if kinds else V2
        if kinds and "memory" not in kinds.split(","):
            continue
        own = Path(path.lstrip("/"))
        for group in (mount / above for above in (own, *own.parents)):
            try:
                stat = dict(row.split() for row in (group / "memory.stat").read_text().splitlines())
                taken = int((group / used).read_text()) - int(stat[cached]) + int(stat[kept])
                yield max(0, int((group / most).read_text()) - taken)  # "max", no number, is no limit
            except (OSError, KeyError, ValueError):
                continue


@dataclass(frozen=True)
class Cost:
    """What answering takes: bytes at once for a number of pixels, and of which kinds.

    counted: (pixels, bytes) of two runs. raw: bytes per pixel of the maps in float32. finish: of answering from them.
    """

    counted: tuple[tuple[int, int], tuple[int, int]]
    raw: int
    finish: int

    def __call__(self, pixels: int) -> int:
        """Bytes at once for so many pixels: linear through the counted runs; where those grow faster, by their power.

        Attention that isn't fused grows with the square of its tokens.
        """
        (few, low), (many, high) = self.counted
        if high * few <= low * many:
            return int(MARGIN * (low + (high - low) * max(0, pixels - few) / (many - few)))
        return int(MARGIN * high * (pixels / many) ** (math.log(high / low) / math.log(many / few)))


def count(
    run: Callable[..., dict[str, Any]],
    finish: Callable[[dict[str, Any], dict[str, Tensor]], Any],
    maps: tuple[str, ...],
    channels: dict[str, int],
    like: Tensor,
    prompts: dict[str, Tensor],
    hidden: Sequence[int] = (0, 0),
) -> Cost:
    """The cost of `finish(run(**inputs), inputs)`, by two small runs.

    channels: of `image` and the planes. like: a tensor of the device and dtype. prompts: other inputs, for one image.
    hidden: bytes of the two runs, where a runtime keeps its tensors to itself.
    """
    runs = []
    for side, unseen in zip(SIDES, hidden, strict=True):
        with Counted() as counted:
            inputs = {name: like.new_full((1, n, side, side), 0.5) for name, n in channels.items()}
            outputs = run(inputs["image"], **{k: x for k, x in inputs.items() if k != "image"}, **prompts)
            finish(outputs, inputs | prompts)
        runs.append((side * side, max(counted.peak, unseen)))
    with Counted() as counted:
        finish(outputs, inputs | prompts)
    raw = sum(4 * outputs[name].shape[1] for name in maps)
    return Cost((runs[0], runs[1]), raw, math.ceil(counted.peak / side**2))


class Counted(TorchDispatchMode):
    """`peak`: the most bytes of tensors made inside that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in _storages((args, kwargs)):
            self._alive.setdefault(StorageWeakRef(storage), 0)  # from before, such as weights
        out = func(*args, **(kwargs or {}))
        self._alive = {ref: size for ref, size in self._alive.items() if not ref.expired()}
        for storage in _storages(out):
            self._alive.setdefault(StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, sum(self._alive.values()))
        return out


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
