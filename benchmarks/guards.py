"""What the guards of a training cost: images per second of the demo with all of them on, against none.

    python -m benchmarks.guards [--pairs 20] [--steps 15]

On: a run's callback, its data set with replacements and its watched workers, data.on_error and on_nan `skip`, which
look at the most. Off: the same loop, loader and model without. The few operations on the loss's terms in the module
itself stay in both. The clock runs from the first batch in hand to the end of the last step.
"""

import argparse
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch.utils.data import DataLoader

import zoo
from benchmarks.loop import Clock
from benchmarks.pairs import summary, told
from zoo.metrics import create_metrics
from zoo.training.callbacks import Keep, Show, Tables
from zoo.training.data import open_data
from zoo.training.guards import Guard
from zoo.training.loader import Batches, EpochSampler, one_size, train_loader
from zoo.training.module import Training
from zoo.training.recipe import load_recipe
from zoo.training.surroundings import quiet
from zoo.training.trainer import create_trainer
from zoo.training.unreadable import Readable

WORDS = ["--trainer.max_epochs", "1", "--data.root", "runs/demo_data", "--trainer.accelerator", "cpu"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    console = Console(quiet=True)
    recipe = load_recipe("segmentation/demo", [*WORDS, "--data.on_error", "skip", "--on_nan", "skip"])
    data = open_data(recipe, channels=None)
    torch.manual_seed(0)
    keys = {key: value for key, value in recipe.model.items() if value is not None or key == "input_size"}
    model = zoo.create_model(**keys)
    size, workers = recipe.data.batch_size, recipe.data.num_workers
    samples = data.training()
    watched = train_loader(Readable(samples, replace=True), batch_size=size, num_workers=workers, timeout=600)
    batches = Batches(EpochSampler(len(samples)), size)
    plain: Any = DataLoader(
        samples, batch_sampler=batches, collate_fn=one_size, num_workers=workers, persistent_workers=workers > 0
    )

    def seconds(loader: Any, guards: list[Guard]) -> float:
        clock, tables, keep = Clock(), Tables(None), Keep(None, None)
        module = Training(model, create_metrics(model.task), optimizer=recipe.optimizer, scheduler=recipe.scheduler)
        with quiet():
            options = {**recipe.trainer, "limit_train_batches": args.steps}
            create_trainer(options, [*guards, tables, keep, Show(console, tables, keep), clock]).fit(module, loader)
        return clock.seconds

    def on() -> float:
        return seconds(watched, [Guard(recipe, console)])

    def off() -> float:
        return seconds(plain, [])

    on(), off()
    times = np.array([(off(), on()) if i % 2 else (on(), off())[::-1] for i in range(args.pairs)])
    print(told("images/s, guards on / off (= time, off / on)", summary(times), 0.98, at_least=True))


if __name__ == "__main__":
    main()
