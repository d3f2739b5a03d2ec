"""The training loop: images per second of `zoo train` on the demo against a bare PyTorch loop; and the loader alone.

    python -m benchmarks.loop [--pairs 20] [--steps 15]

Both loops have the same model, loader, loss and optimiser. The clock runs from the first batch in hand to the end of
the last step, so that neither pays for starting the workers.
"""

import argparse
import csv
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback
from rich.console import Console

import zoo
from benchmarks.pairs import summary, told
from zoo.metrics import create_metrics
from zoo.training.callbacks import Keep, Show, Tables
from zoo.training.data import open_data
from zoo.training.loader import train_loader
from zoo.training.module import Training
from zoo.training.optim import create_optimizer
from zoo.training.recipe import load_recipe
from zoo.training.surroundings import quiet
from zoo.training.trainer import create_trainer


class Clock(Callback):
    """Seconds from the first batch in hand to the end of the last step."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        if index == 0:
            self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.seconds = time.perf_counter() - self.start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    recipe = load_recipe("segmentation/demo", ["--trainer.max_epochs", "1", "--data.root", "runs/demo_data"])
    data = open_data(recipe, channels=None)
    torch.manual_seed(0)
    keys = {key: value for key, value in recipe.model.items() if value is not None or key == "input_size"}
    model = zoo.create_model(**keys)
    loader = train_loader(data.training(), batch_size=recipe.data.batch_size, num_workers=recipe.data.num_workers)

    def ours() -> float:
        clock = Clock()
        module = Training(model, create_metrics(model.task), optimizer=recipe.optimizer, scheduler=recipe.scheduler)
        tables, keep = Tables(None), Keep(None, None)
        show = Show(Console(quiet=True), tables, keep)
        with quiet():
            trainer = create_trainer({**recipe.trainer, "limit_train_batches": args.steps}, [tables, keep, show, clock])
            trainer.fit(module, loader)
        return clock.seconds

    def bare() -> float:
        model.train()
        optimizer = create_optimizer(model, recipe.optimizer)
        batches = iter(loader)
        batch = next(batches)
        start = time.perf_counter()
        for step in range(args.steps):
            optimizer.zero_grad()
            model.task.loss(model(batch["image"]), batch)["loss"].backward()
            optimizer.step()
            if step + 1 < args.steps:
                batch = next(batches)
        return time.perf_counter() - start

    ours(), bare()
    times = np.array([(bare(), ours()) if i % 2 else (ours(), bare())[::-1] for i in range(args.pairs)])
    print(told("images/s, zoo train / bare loop (= time, bare / zoo train)", summary(times), 0.95, at_least=True))
    start, images = time.perf_counter(), 0
    for batch in loader:
        images += len(batch["image"])
    print(f"the loader alone: {images / (time.perf_counter() - start):.0f} images/s, {recipe.data.num_workers} workers")
    with tempfile.TemporaryDirectory() as folder:
        module = Training(model, create_metrics(model.task), optimizer=recipe.optimizer, scheduler=recipe.scheduler)
        with quiet():
            create_trainer(recipe.trainer, [Tables(Path(folder))]).fit(module, loader)
        row = next(csv.DictReader((Path(folder) / "timings.csv").open()))
    waiting = 100 * float(row["waiting"])
    print(f"zoo train: {row['images_per_second']} images/s; waiting for data {waiting:.1f} % of a step")


if __name__ == "__main__":
    main()
