"""`zoo test`: a run's model measured on a split of its data, or of other data."""

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from zoo.create import load_model
from zoo.errors import UserError
from zoo.metrics import create_counts, create_metrics
from zoo.report.page import read_json, write_page
from zoo.training import record, tested
from zoo.training.callbacks import Keep, Show, Tables
from zoo.training.data import Splits, fold_of, open_data
from zoo.training.guards import Guard
from zoo.training.keys import Recipe
from zoo.training.module import Training
from zoo.training.recipe import load_recipe
from zoo.training.surroundings import create_console, interruptible, quiet, sentences
from zoo.training.trainer import create_trainer


def test(
    run: str | Path,
    split: str | None = None,  # noqa: PT028
    overrides: Iterable[str] = (),  # noqa: PT028
) -> dict[str, float]:
    """The metrics of a run's model on a split of its data; also written to test.json and into the report.

    split: None = every split beside train and val (then, of several, each metric's name opens with "<split>/"), or val
    where there is none. overrides: recipe keys as on the command line, such as "--data.root", "elsewhere/"; of data,
    trainer and protocol alone. Measured on other data, nothing in the run's folder changes.
    """
    folder = Path(run)
    own, recipe = (load_recipe(folder / "recipe.yaml", words) for words in ((), list(overrides)))
    for key in (f.name for f in fields(Recipe)):
        if key not in ("data", "trainer", "protocol") and getattr(own, key) != getattr(recipe, key):
            raise UserError(
                f"The recipe key {key!r} is the run's own; a test takes keys of data, trainer and protocol alone."
            )
    same = _images(own) == _images(recipe)
    with quiet(), sentences(recipe), interruptible():
        console = create_console()
        model = load_model(folder)
        data = open_data(
            recipe,
            channels=model.config["in_channels"],
            intensity=model.config["intensity"] or {},
            names=(read_json(folder / record.SPLITS) if same else None) or None,
        )
        chosen = [split] if split else data.test_splits
        if not chosen:
            raise UserError(f"The data {data.card.name!r} has neither a test nor a val split; give --split train.")
        for name in chosen:
            data.check_split(name)
        module = Training(model, create_metrics(model.task, recipe.protocol))
        show = Show(console, Tables(None), Keep(None, None))
        guard = Guard(recipe, console)
        trainer = create_trainer({k: v for k, v in recipe.trainer.items() if k in EVALUATION_KEYS}, [guard, show])
        found, by_image = {}, []
        for name in chosen:
            found[name] = measure(trainer, module, data, name)
            by_image += tested.take(module, data, name)
            console.print(record.told(name, found[name]))
        if same and trainer.is_global_zero:
            try:
                tested.write(folder, by_image, model, data, trainer.strategy.root_device)
                record.write_json(folder / "test.json", read_json(folder / "test.json") | found)
                console.print(f"The report is {write_page(folder)}")
            except OSError as error:
                console.print(f"{folder} cannot be written to ({error.strerror}), so its report is as it was.")
    plain = {name: {k: v for k, v in scores.items() if k != "images"} for name, scores in found.items()}
    if len(plain) == 1:
        return next(iter(plain.values()))
    return {f"{name}/{key}": value for name, scores in plain.items() for key, value in scores.items()}


EVALUATION_KEYS = (
    "accelerator",
    "strategy",
    "devices",
    "num_nodes",
    "limit_test_batches",
    "deterministic",
    "benchmark",
)


def _images(recipe: Recipe) -> tuple[Any, ...]:
    """What decides on which images a test is: equal for equal figures."""
    root = recipe.data.root and Path(recipe.data.root).expanduser().resolve()
    return recipe.data.card, root, fold_of(recipe), recipe.trainer.get("limit_test_batches")


def measure(trainer: Trainer, module: Training, data: Splits, split: str) -> dict[str, float]:
    """The metrics on a split, and the number of images, counted over all processes; `module.counted` tells the rest."""
    module.split = split
    module.counter = create_counts(module.model.task, [str(pair.image) for pair in data.pairs[split]])
    trainer.test(module, data.eval_loader(split), verbose=False)
    return {"images": module.images, **module.scores}
