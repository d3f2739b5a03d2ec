"""Loaders: what is random about a sample depends on (seed, epoch, sample) alone, not on workers, ranks or order.

The sampler hands the data set keys (epoch, index); the data set seeds its transforms from them.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from zoo.errors import UserError
from zoo.training.watchdog import Watched, tell_on_signal

Batch = dict[str, Any]


class EpochSampler(Sampler[tuple[int, int]]):
    """Keys (epoch, index) of this process's share of a data set of `size` samples.

    shuffle=True (training): a permutation drawn from (seed, epoch); every process gets equally many, for which the
    permutation's beginning is used again where `size` is no multiple of the number of processes. Neighbours go to
    different processes, so that a global batch is the same for any number of them. shuffle=False (evaluation): in
    order, each sample exactly once over all processes; fewer samples than processes are a UserError, since a process
    without any would leave the others waiting for it.
    """

    def __init__(self, size: int, *, seed: int = 0, shuffle: bool = True):
        self.size, self.seed, self.shuffle = size, seed, shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next pass (Lightning calls this)."""
        self.epoch = epoch

    def indices(self) -> Sequence[int]:
        """This process's indices, in the epoch's order."""
        rank, world = processes()
        if not self.shuffle:
            check_measurable(self.size, world)
            return range(rank, self.size, world)
        # numbers that follow one another give unrelated permutations only after mixing: hash() of ints is not enough
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        order = torch.randperm(self.size, generator=generator).tolist()
        return [order[i % self.size] for i in range(rank, -(-self.size // world) * world, world)]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch
        return iter([(epoch, index) for index in self.indices()])

    def __len__(self) -> int:
        return -(-self.size // processes()[1]) if self.shuffle else len(self.indices())


class Batches(Sampler[list[tuple[int, int]]]):
    """The keys of `sampler` in batches; the last, smaller one is kept unless it is a single sample beside others.

    BatchNorm has no statistics of one pooled sample. Decided for the samples of this process, when they are counted:
    a loader is built before the processes know of each other. The length is that of a whole pass.
    """

    def __init__(self, sampler: EpochSampler, batch_size: int):
        self.sampler, self.batch_size = sampler, batch_size
        self.first = 0

    def begin(self, epoch: int, batch: int) -> None:
        """Let the next pass be the rest of an epoch, from this batch on; passes after it are whole."""
        self.sampler.set_epoch(epoch)
        self.first = batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        # a generator: torch asks twice for the first pass's iterator and uses the second
        keys, first, self.first = list(self.sampler), self.first, 0
        for i in range(first, len(self)):
            yield keys[i * self.batch_size : (i + 1) * self.batch_size]

    def __len__(self) -> int:
        full, rest = divmod(len(self.sampler), self.batch_size)
        return full + (rest > 1 or (rest == 1 and full == 0))


class Rates:
    """A loader that hands out each batch of `loader` at several sizes, in the order of `rates`; each is a step.

    The size at rate r is round(side * r / 32) * 32, image and mask resized from the batch (bilinear,
    align_corners=True; ids by nearest), untouched at rate 1. Source: PraNet's training (Fan et al. 2020).
    """

    def __init__(self, loader: DataLoader[Batch], rates: Sequence[float]):
        if not rates or min(rates) <= 0:
            raise UserError(f"data.rates is {list(rates)}; give positive numbers such as [0.75, 1, 1.25], or null.")
        self.loader, self.rates = loader, tuple(rates)
        self.first = 0  # of the rates of a resumed pass's first batch

    @property
    def dataset(self) -> Any:
        return self.loader.dataset

    @property
    def batch_sampler(self) -> Any:
        return self.loader.batch_sampler  # where Lightning sets the epoch

    def __iter__(self) -> Iterator[Batch]:
        first, self.first = self.first, 0
        for batch in self.loader:
            for rate in self.rates[first:]:
                yield batch if rate == 1 else rescaled(batch, rate)
            first = 0

    def __len__(self) -> int:
        return len(self.loader) * len(self.rates)


def rescaled(batch: Batch, rate: float) -> Batch:
    """The batch with its image (B,C,H,W) and mask (B,H,W) or (B,K,H,W) at sides of round(side * rate / 32) * 32."""
    height, width = batch["image"].shape[-2:]
    size = tuple(max(1, round(side * rate / 32)) * 32 for side in (height, width))
    return {**batch, "image": _smooth(batch["image"], size), "mask": _resized_mask(batch["mask"], size)}


def _smooth(x: Tensor, size: tuple[int, ...]) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


def _resized_mask(mask: Tensor, size: tuple[int, ...]) -> Tensor:
    if mask.is_floating_point():
        return _smooth(mask, size)
    planes = mask if mask.ndim == 4 else mask[:, None]
    # float64 holds every id exactly; interpolate takes no integers
    planes = F.interpolate(planes.double(), size, mode="nearest-exact").to(mask.dtype)
    return planes if mask.ndim == 4 else planes[:, 0]


def train_loader(
    dataset: Dataset[Batch],
    *,
    batch_size: int,
    num_workers: int = 0,
    seed: int = 0,
    rates: Sequence[float] | None = None,
    timeout: float = 0.0,
) -> DataLoader[Batch] | Rates:
    """Shuffled batches of equally sized samples; the last, smaller one is kept unless it is a single sample.

    timeout: seconds that workers may take for a batch, 0 = any.
    """
    size = len(dataset)  # type: ignore[arg-type]  # torch declares no __len__
    loader = _loader(
        dataset,
        num_workers,
        timeout,
        batch_sampler=Batches(EpochSampler(size, seed=seed), batch_size),
        collate_fn=one_size,
    )
    return Rates(loader, rates) if rates else loader


def begin(loader: DataLoader[Batch] | Rates, epoch: int, batch: int) -> None:
    """Let the next pass over a training loader be the rest of an epoch, from this batch on; passes after it are whole.

    Both count from 0; each rate counts as a batch.
    """
    batches: Any = loader.batch_sampler
    if isinstance(loader, Rates):
        batch, loader.first = divmod(batch, len(loader.rates))
    batches.begin(epoch, batch)


def eval_loader(
    dataset: Dataset[Batch], *, batch_size: int, pixels: int, num_workers: int = 0, timeout: float = 0.0
) -> DataLoader[list[Batch]]:
    """Lists of batches at the images' original sizes, in order: neighbours of equal size lie in one batch.

    A batch holds at most `batch_size` images and `pixels` pixels in all (a single image may have more). Samples without
    an image, which could not be read, are a batch of their own. timeout: as for training.
    """
    size = len(dataset)  # type: ignore[arg-type]
    return _loader(
        dataset,
        num_workers,
        timeout,
        batch_size=batch_size,
        sampler=EpochSampler(size, shuffle=False),
        collate_fn=EqualSizes(pixels),
    )


def one_size(samples: list[Batch]) -> Batch:
    """A batch of samples of one size. Raises UserError where sizes differ, since a training batch is one tensor."""
    sizes = sorted({tuple(sample["image"].shape[-2:]) for sample in samples})
    if len(sizes) > 1:
        first, last = ("x".join(map(str, size)) for size in (sizes[0], sizes[-1]))
        raise UserError(
            f"Training images differ in size ({first} and {last}); set --data.size '[352, 352]' to train on one size,"
            " or --data.batch_size 1."
        )
    batch: Batch = default_collate(samples)
    return batch


class EqualSizes:
    """Collates samples into a list of batches: runs of equally sized images with at most `pixels` pixels each."""

    def __init__(self, pixels: int):
        self.pixels = pixels

    def __call__(self, samples: list[Batch]) -> list[Batch]:
        runs: list[list[Batch]] = []
        for sample in samples:
            if "image" not in sample:
                continue
            shape = sample["image"].shape
            fits = runs and runs[-1][0]["image"].shape == shape
            if fits and (len(runs[-1]) + 1) * shape[-2] * shape[-1] <= self.pixels:
                runs[-1].append(sample)
            else:
                runs.append([sample])
        unread = [sample for sample in samples if "image" not in sample]
        return [default_collate(run) for run in (*runs, *([unread] if unread else []))]


def check_measurable(images: int, world: int) -> None:
    """Raise UserError where a split to measure has fewer images than there are processes."""
    if images < world:
        raise UserError(
            f"A split to measure has {images} image(s), fewer than the {world} processes; lower trainer.devices"
            f" (--trainer.devices {images}), or give it more images."
        )


def processes() -> tuple[int, int]:
    """(rank, number of processes) of the running group; (0, 1) outside of one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _loader(dataset: Any, workers: int, timeout: float, **options: Any) -> DataLoader[Any]:
    options |= {"pin_memory": torch.cuda.is_available()}
    if not workers:
        return DataLoader(dataset, **options)
    own = {"persistent_workers": True, "worker_init_fn": _begin_worker}
    return Watched(dataset, num_workers=workers, timeout=timeout, **own, **options)


def _begin_worker(worker: int) -> None:
    """A worker is one of many: threads inside each of them would fight for the same cores.

    And it reads on until the training process ends it: Ctrl-C, and a scheduler's SIGTERM, reach all of them at once.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    tell_on_signal()
    torch.set_num_threads(1)
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(0)


def _end_with(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
