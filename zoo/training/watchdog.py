"""A loader that waits for its workers no longer than it is told to, and then says what each of them is doing."""

import contextlib
import faulthandler
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.sharedctypes import RawArray
from typing import Any

from torch.utils.data import DataLoader, Dataset, get_worker_info

from zoo.errors import UserError

STACKS = getattr(signal, "SIGUSR2", None)  # SLURM has a use for the other one; None on Windows: no stacks there
IDLE = -1


class Noted(Dataset[Any]):
    """A data set that notes which sample each of its workers reads, in memory that the processes share."""

    def __init__(self, dataset: Any, workers: int):
        self.dataset = dataset
        self.pids, self.reading = RawArray("q", workers), RawArray("q", [IDLE] * workers)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Any) -> Any:
        worker: Any = get_worker_info()
        self.pids[worker.id] = os.getpid()
        self.reading[worker.id] = key[1] if isinstance(key, tuple) else key
        sample = self.dataset[key]
        self.reading[worker.id] = IDLE
        return sample

    def stuck(self) -> dict[int, tuple[int, str]]:
        """Worker -> (pid, what it reads) of those that are at a sample: its path, or "sample 7"."""
        path = getattr(self.dataset, "path", lambda index: f"sample {index}")
        found = {w: (int(self.pids[w]), int(index)) for w, index in enumerate(self.reading) if index != IDLE}
        return {worker: (pid, path(index)) for worker, (pid, index) in found.items()}


class Watched(DataLoader[Any]):
    """A DataLoader with workers that ends with a UserError where none of them gives a batch for `timeout` seconds.

    Before that, each worker that reads writes its stack to stderr, and is ended. The sentence names what it reads.
    """

    def __init__(self, dataset: Any, *, num_workers: int, timeout: float, **options: Any):
        self.noted = Noted(dataset, num_workers)
        super().__init__(self.noted, num_workers=num_workers, timeout=timeout, **options)

    def __iter__(self) -> Any:
        return self._batches(super().__iter__())  # now: workers start reading when the pass is asked for

    def _batches(self, batches: Iterator[Any]) -> Iterator[Any]:
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader timed out" not in str(error):
                    raise
                raise self._hung() from None
            yield batch

    def _hung(self) -> UserError:
        stuck = self.noted.stuck()
        for pid, _ in stuck.values():
            with contextlib.suppress(ProcessLookupError):
                if STACKS:
                    os.kill(pid, STACKS)
                    time.sleep(0.2)  # one after the other, or their lines would mix
                os.kill(pid, signal.SIGTERM)  # lest whoever waits for its end waits for the file too
        files = "; ".join(f"worker {worker} is at {what}" for worker, (_, what) in stuck.items())
        return UserError(
            f"No batch came for {self.timeout:g} s (data.timeout): {files or 'no worker is at a sample'}. Their stacks"
            " stand above. See whether the file and its disk answer; where reading is that slow, raise --data.timeout."
        )


def tell_on_signal() -> None:
    """Let this worker write its stack to stderr when STACKS comes, whatever it is in the midst of."""
    if STACKS:
        faulthandler.register(STACKS, file=2, all_threads=False)
