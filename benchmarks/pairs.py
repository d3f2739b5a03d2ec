"""How things are measured here: interleaved pairs in one process for time, a process of its own for memory."""

import ctypes
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def ratio(ours: Callable[[], Any], theirs: Callable[[], Any], pairs: int = 21, warmup: int = 2) -> dict[str, float]:
    """Time of `ours` / time of `theirs`: the median over interleaved pairs, with its bootstrap 95 % interval.

    The order within a pair alternates, so that neither always runs on the other's warm caches.
    """
    for _ in range(warmup):
        ours()
        theirs()
    times = np.empty((pairs, 2))
    for i in range(pairs):
        for place in (0, 1) if i % 2 == 0 else (1, 0):
            start = time.perf_counter()
            (ours, theirs)[place]()
            times[i, place] = time.perf_counter() - start
    return summary(times)


def summary(times: np.ndarray) -> dict[str, float]:
    """times (pairs, 2) in seconds, first / second: the median ratio, its bootstrap 95 % interval, both medians."""
    quotients = times[:, 0] / times[:, 1]
    draws = np.random.default_rng(0).choice(quotients, (2000, len(times)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    seconds = np.median(times, axis=0)
    return dict(
        ratio=float(np.median(quotients)), low=float(low), high=float(high), n=len(times),
        ours_s=float(seconds[0]), theirs_s=float(seconds[1]),
    )  # fmt: skip


def told(what: str, figures: dict[str, float], target: float, *, at_least: bool = False) -> str:
    """One line of a result: the ratio, its interval, both times, and whether the target is met."""
    met = figures["ratio"] >= target if at_least else figures["ratio"] <= target
    return (
        f"{what}: {figures['ratio']:.3f} [{figures['low']:.3f}, {figures['high']:.3f}] n={figures['n']:.0f}"
        f" ({figures['ours_s'] * 1e3:.1f} ms / {figures['theirs_s'] * 1e3:.1f} ms);"
        f" target {'>=' if at_least else '<='} {target}: {'met' if met else 'MISSED'}"
    )


def peak_memory(module: str, *args: str) -> dict[str, float]:
    """What `python -m module *args` prints as its last line: the JSON of `grown`, measured in that process alone."""
    done = subprocess.run([sys.executable, "-m", module, *args], capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout.strip().split("\n")[-1])
    return figures


def grown(work: Callable[[], Any]) -> str:
    """Peak resident memory of this process while `work` runs, beyond what it had before, as JSON in MiB."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back, or the work would use it unseen
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the kernel's peak starts anew
    before = _status("VmRSS")
    work()
    return json.dumps({"MiB": _status("VmHWM") - before})


def _status(field: str) -> float:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(field))
    return float(line.split()[1]) / 1024
