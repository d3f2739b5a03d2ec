"""A run: a recipe trained into a folder with the checkpoint, the tables, the figures and the report; and its test.

runs/<recipe>/<n>/ holds recipe.yaml (resolved), splits.json (which images were in which split), model.safetensors +
config.json, metrics.csv, timings.csv, test.json, curves.png, samples.png, report.html, and run.json: what the report
says beside these.
"""

import copy
import math
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping
from rich.console import Console

from zoo.checkpoints import folder as checkpoint
from zoo.create import create_model, load_model
from zoo.datasets.card import Card
from zoo.errors import UserError, nearest
from zoo.files import aside
from zoo.metrics import LESS_IS_BETTER, create_metrics
from zoo.model import Model
from zoo.report.page import write_page
from zoo.training import record
from zoo.training.balance import class_weights
from zoo.training.callbacks import Keep, Show, Tables
from zoo.training.data import PASSES, Splits, open_data
from zoo.training.keys import Recipe
from zoo.training.loader import check_measurable, train_loader
from zoo.training.loggers import create_logger
from zoo.training.module import Training
from zoo.training.optim import create_optimizer, create_schedule
from zoo.training.recipe import load_recipe
from zoo.training.surroundings import create_console, interruptible, is_first, one_line, quiet, sentences

EPOCHS = 20  # where a recipe bounds neither epochs, steps nor time
SPLITS = "splits.json"


def train(recipe: Recipe, *, runs: str | Path = "runs") -> Path:
    """Train a recipe, test what is kept, and write the report; returns the run's folder, runs/<recipe>/<n>.

    After an interruption the folder keeps what was saved and says so; a run that ends with an error before its first
    epoch leaves no folder; where only a test fails, the run is finished and says which. Raises UserError for what is
    wrong in the recipe or its data.
    """
    with quiet(), sentences(recipe), interruptible():
        return _train(copy.deepcopy(recipe), Path(runs), create_console())


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
    same = _measured(own) == _measured(recipe)
    with quiet(), sentences(recipe), interruptible():
        console = create_console()
        model = load_model(folder)
        data = open_data(
            recipe,
            channels=model.config["in_channels"],
            intensity=model.config["intensity"] or {},
            names=(record.read_json(folder / SPLITS) if same else None) or None,
        )
        chosen = [split] if split else data.test_splits
        if not chosen:
            raise UserError(f"The data {data.card.name!r} has neither a test nor a val split; give --split train.")
        for name in chosen:
            data.check_split(name)
        module = Training(model, create_metrics(model.task, recipe.protocol))
        show = Show(console, Tables(None), Keep(None, None))
        trainer = create_trainer({k: v for k, v in recipe.trainer.items() if k in EVALUATION_KEYS}, [show])
        found = {}
        for name in chosen:
            found[name] = _measure(trainer, module, data, name)
            console.print(record.told(name, found[name]))
        if same and trainer.is_global_zero:
            try:
                record.write_json(folder / "test.json", record.read_json(folder / "test.json") | found)
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


def _measured(recipe: Recipe) -> tuple[Any, ...]:
    """What decides on which images a test is: equal for equal figures."""
    root = recipe.data.root and Path(recipe.data.root).expanduser().resolve()
    return recipe.data.card, root, recipe.trainer.get("limit_test_batches")


def new_folder(parent: Path) -> Path:
    """parent/<n> with the next free number, made by this process alone (mkdir is exclusive).

    Raises UserError where it cannot be made.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(entry.name) for entry in parent.iterdir() if entry.name.isdigit()), default=0)
        while True:
            try:
                (parent / str(number)).mkdir()
                return parent / str(number)
            except FileExistsError:
                number += 1
    except OSError as error:
        raise UserError(
            f"The run's folder cannot be made in {parent} ({error.strerror}); start in a folder where you may write,"
            " and where `runs` is a folder or nothing."
        ) from None


def _train(recipe: Recipe, runs: Path, console: Console) -> Path:
    if all(recipe.trainer.get(key) is None for key in ("max_epochs", "max_steps", "max_time")):
        recipe.trainer["max_epochs"] = EPOCHS
    data = open_data(recipe, channels=recipe.model.get("in_channels"))
    data.check_split("train")
    if data.card.found:
        console.print(data.card.found)
        # a later test, perhaps of another folder, is to read masks as this training does
        looked = {"values": data.card.values, "num_classes": data.card.num_classes}
        recipe.data.card = {**recipe.data.card, **looked}
    folder = new_folder(runs / recipe.name) if is_first() else None  # now, lest a long training finds no place
    tables, keep, facts = Tables(folder), Keep(folder, None), dict[str, Any]()
    try:
        with sentences(recipe), interruptible():
            model = _model(recipe, data.card)
            recipe.model["num_classes"] = model.task.num_classes
            for note in _notes(recipe, data, model):
                console.print(f"Note: {note}")
            metrics = create_metrics(model.task, recipe.protocol)
            keep.monitor = _monitor(recipe, data, metrics)
            stop = _early_stopping(recipe, keep.monitor)
            callbacks = [tables, keep, Show(console, tables, keep), *stop]
            trainer = create_trainer(recipe.trainer, callbacks, create_logger(recipe.trainer.get("logger"), folder))
            for split in data.images.keys() - {"train"}:
                check_measurable(data.images[split], trainer.world_size)
            # what Lightning would only find out once the training has begun
            create_optimizer(model, recipe.optimizer)
            endless = trainer.max_epochs == -1 and trainer.max_steps == -1
            create_schedule(recipe.scheduler, steps=math.inf if endless else 1)
            recipe.class_weights = class_weights(recipe, data, model.task)
            module = Training(
                model,
                metrics,
                weights=recipe.loss,
                optimizer=recipe.optimizer,
                scheduler=recipe.scheduler,
                class_weights=recipe.class_weights,
                ema=recipe.ema,
                channels_last=recipe.channels_last,
                compile=recipe.compile,
            )
            loader = train_loader(
                data.training(),
                batch_size=recipe.data.batch_size,
                num_workers=recipe.data.num_workers,
                seed=recipe.seed,
                rates=recipe.data.rates,
            )
            held_out = data.eval_loader("val") if "val" in data.pairs else None
            facts |= record.facts_of(recipe, data, model, folder)
            if folder:
                _write_start(folder, recipe, data, facts)
            for logger in trainer.loggers:
                logger.log_hyperparams(asdict(recipe))
            what, on = record.describe(recipe, data, model)
            console.print(f"Training {what}, on {on}.\nThe run lies in {folder}")
            trainer.fit(module, loader, held_out)
            if keep.epoch is None:
                raise UserError(
                    "The training made no step, so there is nothing to keep; raise what the trainer sets of max_epochs,"
                    " max_steps, max_time and limit_train_batches."
                )
    except BaseException as error:
        if folder:
            record.leave(folder, facts, keep, tables, error, console)
        raise
    folder = Path(trainer.strategy.broadcast(str(folder)))  # only the first process has made one
    model.load_state_dict(checkpoint.read(folder)[1])
    if any(stopper.stopping_reason_message for stopper in stop):
        facts["told"].append(record.ended(recipe.early_stopping.patience, keep.monitor, len(tables.metrics)))
    if recipe.overfit:
        facts["told"].append(record.learned(data.images["train"], keep, tables.metrics))
    facts |= {"told": [*facts["told"], record.kept(keep)], "kept_epoch": keep.epoch}
    if trainer.is_global_zero:  # finished, whatever a test may still find
        record.write_json(folder / "run.json", facts)
        record.draw_curves(folder, keep)
        write_page(folder)
    for line in facts["told"][1:]:
        console.print(line)
    _finish(folder, recipe, data, trainer, module, facts, console)
    return folder


def _finish(
    folder: Path,
    recipe: Recipe,
    data: Splits,
    trainer: Trainer,
    module: Training,
    facts: dict[str, Any],
    console: Console,
) -> None:
    """Measure every test split, draw samples, and write both into the report: what was measured, where one fails."""
    found: dict[str, dict[str, Any]] = {}
    try:
        with sentences(recipe), interruptible():
            for split in data.test_splits:
                found[split] = _measure(trainer, module, data, split)
                console.print(record.told(split, found[split]))
            if trainer.is_global_zero:
                split = (data.test_splits or ["train"])[0]
                record.draw_samples(module.model, data, split, trainer.strategy.root_device, folder / "samples.png")
                facts["samples"] = split
    except BaseException as error:
        why = "it was interrupted" if isinstance(error, KeyboardInterrupt) else one_line(error).rstrip(".")
        failed = next((split for split in data.test_splits if split not in found), None)
        if failed:
            notice = f"The {failed} split could not be measured: {why}. `{facts['commands']['test it']}` does it later."
            found[failed] = {"notice": notice}
        else:
            facts["notice"] = notice = f"The samples could not be drawn: {why}."
        if not isinstance(error, UserError):
            raise
        raise UserError(f"The training is finished and lies in {folder}. {notice}") from None
    finally:
        if trainer.is_global_zero:
            record.write_json(folder / "test.json", found)
            record.write_json(folder / "run.json", facts)
            console.print(f"The report is {write_page(folder)}")


def _write_start(folder: Path, recipe: Recipe, data: Splits, facts: dict[str, Any]) -> None:
    with aside(folder / "recipe.yaml") as temporary:
        command = f"# zoo train {shlex.quote(str(folder / 'recipe.yaml'))}\n"
        temporary.write_text(command + recipe.to_yaml(), encoding="utf-8")
    record.write_json(folder / SPLITS, data.names())
    record.write_json(folder / "run.json", facts | {"notice": "This training has not ended yet."})


def _model(recipe: Recipe, card: Card) -> Model:
    """The recipe's model with the card's classes, colours, channels and intensity; what the recipe says, holds.

    Options and the names of losses are checked before weights are fetched.
    """
    keys = {key: value for key, value in recipe.model.items() if value is not None or key == "input_size"}
    keys.setdefault("num_classes", card.num_classes)
    keys.setdefault("in_channels", card.channels)
    task: dict[str, Any] = {"ignore_index": card.ignore_index}
    for option, values in (("class_names", card.classes), ("class_colors", card.colors)):
        if len(values) == keys["num_classes"]:
            task[option] = [value if isinstance(value, str) else list(value) for value in values]
    keys |= {"task": {**task, **recipe.task}, "intensity": card.intensity or None}
    with torch.device("meta"):
        plan = create_model(**{key: value for key, value in keys.items() if key not in ("weights", "encoder_weights")})
    plan.task.check_weights(recipe.loss or {}, getattr(plan.decoder, "loss_weights", {}))
    seed_everything(recipe.seed, verbose=False)
    return create_model(**keys)


def _notes(recipe: Recipe, data: Splits, model: Model) -> Iterator[str]:
    size = recipe.data.size
    if size and model.input_size and tuple(size) != model.input_size:
        yield (
            f"the model resizes every image to {record.by(model.input_size)} when it answers, but trains on"
            f" {record.by(size)}; set data.size or model.input_size to make them equal."
        )
    if data.images["train"] < recipe.data.batch_size and not recipe.overfit:
        yield f"there are but {data.images['train']} training images, so batches are of that size."
    if recipe.overfit:
        yield (
            f"overfit: trained, validated and tested on the same {data.images['train']} images, whole and unvaried; an"
            f" epoch goes {PASSES} times over them."
        )
    if recipe.class_weights == "balanced":
        yield "class weights are counted from the masks of the train split."
    if recipe.monitor and "val" not in data.pairs:
        yield "the data has no val split, so the last epoch is kept."


def _monitor(recipe: Recipe, data: Splits, metrics: Any) -> str | None:
    """What the best epoch is chosen by; checked now, not after the first epoch."""
    if recipe.monitor is None or "val" not in data.pairs:
        return None
    known = list(metrics.compute())
    metrics.reset()
    if recipe.monitor not in known:
        raise UserError(
            f"There is no metric {recipe.monitor!r} to monitor{nearest(recipe.monitor, known) or '.'}"
            f" There are: {', '.join(known)}; null keeps the last epoch."
        )
    return recipe.monitor


def _early_stopping(recipe: Recipe, monitor: str | None) -> list[EarlyStopping]:
    options = recipe.early_stopping
    if options.patience is None:
        return []
    if monitor is None:
        raise UserError(
            f"early_stopping.patience is {options.patience}, but there is nothing to judge by: it needs a monitor and a"
            " val split. Take --early_stopping null, or set --monitor."
        )
    mode = "min" if monitor in LESS_IS_BETTER else "max"
    # a metric without a value is no better, but no reason to stop at once
    bounds = dict(patience=options.patience, min_delta=options.min_delta, check_finite=False)
    return [EarlyStopping(f"val/{monitor}", mode=mode, **bounds)]


def create_trainer(options: dict[str, Any], callbacks: list[Any], logger: Any = False) -> Trainer:
    """Lightning's Trainer with a run's defaults under the recipe's `trainer`; on all devices unless it says otherwise.

    Raises UserError where the keys don't fit.
    """
    gpu = torch.cuda.is_available() and options.get("accelerator", "auto") in ("auto", "gpu", "cuda")
    defaults = {"precision": "16-mixed" if gpu else "32-true"}
    own = dict(
        callbacks=callbacks, logger=logger, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0,
    )  # fmt: skip
    try:
        return Trainer(**{**defaults, **options, **own})
    except (MisconfigurationException, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"The recipe's trainer keys do not fit: {one_line(error)}") from None


def _measure(trainer: Trainer, module: Training, data: Splits, split: str) -> dict[str, float]:
    trainer.test(module, data.eval_loader(split), verbose=False)
    return {"images": module.images, **module.scores}
