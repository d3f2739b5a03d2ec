"""What being resumable costs: writing a state beside a step, and coming back; and two processes beside one.

    python -m benchmarks.resume [--epochs 3] [--pairs 3]

The demo's model and data. A state is written at every step; its time is the callback's, with the wait for the disk.
Coming back is from the call to the first step, without the imports, beside the same of a new training. Two processes
(gloo, one thread each, half the batch each) against one with two threads, by timings.csv, the first epoch left out.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from zoo.training.module import Training
from zoo.training.recipe import load_recipe
from zoo.training.resume import resume
from zoo.training.run import train
from zoo.training.state import STATE, State

DATA = ["--data.root", str(Path("runs/demo_data").resolve()), "--trainer.accelerator", "cpu", "--trainer.devices", "1"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        states(Path(folder))
        processes(Path(folder), args.epochs, args.pairs)


class Stop(KeyboardInterrupt):
    """Ends a training in the midst of a step."""


def states(folder: Path, steps: int = 12) -> None:
    """Seconds to write a state, of a step, and until the first step of a new and of a resumed training."""
    save, step = State._save, Training.training_step
    saved: list[float] = []
    steps_at: list[float] = []

    def timed_save(self: State, *given: Any) -> None:
        start = time.perf_counter()
        save(self, *given)
        saved.append(time.perf_counter() - start)

    def timed_step(self: Training, *given: Any) -> Any:
        steps_at.append(time.perf_counter())
        if len(steps_at) > steps:
            raise Stop
        return step(self, *given)

    State._save, Training.training_step = timed_save, timed_step  # type: ignore[method-assign]
    recipe = load_recipe("segmentation/demo", [*DATA, "--save_every", "1"])
    first = []
    for begin in (lambda: train(recipe, runs=folder), lambda: resume(folder / recipe.name / "1")):
        start = time.perf_counter()
        steps_at.clear()
        try:
            begin()
        except KeyboardInterrupt:
            first.append(steps_at[0] - start)
    State._save, Training.training_step = save, step  # type: ignore[method-assign]
    between = [b - a for a, b in pairwise(steps_at)]
    size = max(path.stat().st_size for path in (folder / recipe.name / "1" / STATE).glob("*.ckpt"))
    write = statistics.median(saved)
    whole = statistics.median(between)
    print(f"a state: {size / 1e6:.0f} MB, written in {write:.2f} s; a step without it: {whole - write:.2f} s")
    print(f"to the first step: {first[0]:.1f} s of a new training, {first[1]:.1f} s of a resumed one")


def processes(folder: Path, epochs: int, pairs: int) -> None:
    """Images per second of two processes over those of one, on two cores."""
    ratios = []
    batch = load_recipe("segmentation/demo").data.batch_size
    for i in range(pairs):
        found = {}
        for number in (1, 2) if i % 2 else (2, 1):
            words = ["--name", f"{number}_{i}", "--trainer.devices", str(number), "--data.num_workers", "0"]
            words += ["--data.batch_size", str(batch // number), "--trainer.max_epochs", str(epochs)]
            words += [f"--trainer.limit_{split}_batches=2" for split in ("val", "test")]
            words += ["--trainer.limit_train_batches", "15"]
            command = [sys.executable, "-m", "zoo", "train", "segmentation/demo", *DATA, *words]
            threads = {"OMP_NUM_THREADS": str(2 // number)}
            paths = {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])}
            subprocess.run(command, check=True, cwd=folder, env={**os.environ, **threads, **paths}, capture_output=True)
            with next(folder.glob(f"runs/{number}_{i}/1/timings.csv")).open() as file:
                rows = list(csv.DictReader(file))[1:]
            found[number] = statistics.median(float(row["images_per_second"]) for row in rows)
        ratios.append(found[2] / found[1])
        print(f"images/s: {found[1]:.1f} in one process, {found[2]:.1f} in two")
    print(f"two processes / one: {statistics.median(ratios):.2f} (median of {pairs})")


if __name__ == "__main__":
    main()
