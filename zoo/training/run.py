"""A run: a recipe trained into a folder with the checkpoint, the tables, the figures and the report.

runs/<recipe>/<n>/ holds recipe.yaml (resolved), splits.json (which images were in which split), model.safetensors +
config.json, metrics.csv, timings.csv, test.json, what `tested` writes, curves.png, samples.png, report.html, run.json:
what the report says beside these; and state/, which a training is resumed from.
"""

import copy
import math
import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import LambdaCallback
from rich.console import Console

from zoo.checkpoints import folder as checkpoint
from zoo.create import create_model
from zoo.datasets.card import Card
from zoo.errors import UserError, nearest
from zoo.files import aside
from zoo.metrics import create_metrics
from zoo.model import Model
from zoo.processes import is_first
from zoo.report.page import read_json, write_page
from zoo.training import record, tested
from zoo.training.balance import class_weights
from zoo.training.callbacks import Keep, Show, Tables
from zoo.training.data import PASSES, Splits, fold_of, open_data
from zoo.training.guards import Guard
from zoo.training.keys import Recipe
from zoo.training.loader import check_measurable, train_loader
from zoo.training.loggers import create_logger
from zoo.training.measure import measure
from zoo.training.module import Training
from zoo.training.optim import backbone, create_optimizer, create_schedule
from zoo.training.state import STATE, Past, State, keep_newest
from zoo.training.stopping import early_stopping
from zoo.training.surroundings import create_console, interruptible, one_line, quiet, sentences
from zoo.training.trainer import create_trainer, effective_batch
from zoo.training.unreadable import Readable

EPOCHS = 20  # where a recipe bounds neither epochs, steps nor time


def train(recipe: Recipe, *, runs: str | Path = "runs") -> Path:
    """Train a recipe, test what is kept, and write the report; returns the run's folder, runs/<recipe>/<n>.

    After an interruption the folder keeps what was saved and says so (`resume` goes on from there); a run that ends
    with an error before anything was saved leaves no folder; where only a test fails, the run is finished and says
    which. Raises UserError for what is wrong in the recipe or its data.
    """
    return carry_out(recipe, Path(runs))


def carry_out(recipe: Recipe, runs: Path, past: Past | None = None) -> Path:
    """Train a recipe in a new folder of `runs`, or, where there is a past, go on from it in its own."""
    with quiet(), sentences(recipe), interruptible():
        return _train(copy.deepcopy(recipe), runs, past, create_console())


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


def _train(recipe: Recipe, runs: Path, past: Past | None, console: Console) -> Path:
    if all(recipe.trainer.get(key) is None for key in ("max_epochs", "max_steps", "max_time")):
        recipe.trainer["max_epochs"] = EPOCHS
    names = read_json(past.folder / record.SPLITS) if past else None
    data = open_data(recipe, channels=recipe.model.get("in_channels"), names=names)
    data.check_split("train")
    if past:
        console.print(past.told[-1])
    if data.card.found:
        console.print(data.card.found)
        # a later test, perhaps of another folder, is to read masks as this training does
        looked = {"values": data.card.values, "num_classes": data.card.num_classes}
        recipe.data.card = {**recipe.data.card, **looked}
    loader = train_loader(
        Readable(data.training(), replace=True),
        batch_size=recipe.data.batch_size,
        num_workers=recipe.data.num_workers,
        seed=recipe.seed,
        rates=recipe.data.rates,
        timeout=recipe.data.timeout,
    )
    folder = None
    if is_first():  # a new one now, lest a long training finds no place
        folder = past.folder if past else new_folder(runs / recipe.name / fold_of(recipe).replace(" ", "_"))
    state = State(folder, loader, every=recipe.save_every, seed=recipe.seed, changed=bool(past and past.changed))
    tables, facts = Tables(folder), dict[str, Any]()
    keep = Keep(folder, None, tables)
    guard = Guard(recipe, console, folder)
    try:
        with sentences(recipe), interruptible():
            logger = create_logger(recipe.trainer.get("logger"), folder)
            model = _model(recipe, data.card)
            recipe.model["num_classes"] = model.task.num_classes
            for note in _notes(recipe, data, model):
                console.print(f"Note: {note}")
            metrics = create_metrics(model.task, recipe.protocol)
            keep.monitor = _monitor(recipe, data, metrics)
            stop = early_stopping(recipe, keep.monitor, changed=bool(past and past.changed))
            start = LambdaCallback(on_train_start=lambda *_: _write_start(folder, recipe, data, facts))
            callbacks = [guard, tables, keep, state, start, Show(console, tables, keep), *stop]
            trainer = create_trainer(recipe.trainer, callbacks, logger)
            if effective := effective_batch(trainer, recipe.data.batch_size):
                console.print(f"Note: {effective}")
            for split in data.images.keys() - {"train"}:
                check_measurable(data.images[split], trainer.world_size)
            # what Lightning would only find out once the training has begun
            create_optimizer(model, recipe.optimizer)
            endless = trainer.max_epochs == -1 and trainer.max_steps == -1
            create_schedule(recipe.scheduler, steps=math.inf if endless else 1)
            recipe.class_weights = class_weights(recipe, data, model.task, console.print)
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
            held_out = data.eval_loader("val") if "val" in data.pairs else None
            facts |= record.facts_of(recipe, data, model, folder)
            if past:
                facts |= {"told": [*facts["told"], *past.told], "resumed": past.told}
            for logger in trainer.loggers:
                logger.log_hyperparams(asdict(recipe))
            what, on = record.describe(recipe, data, model)
            console.print(f"Training {what}, on {on}.\nThe run lies in {folder}")
            trainer.fit(module, loader, held_out, ckpt_path=past.state if past else None)
            if keep.epoch is None:
                raise UserError(
                    "The training made no step, so there is nothing to keep; raise what the trainer sets of max_epochs,"
                    " max_steps, max_time and limit_train_batches."
                )
    except BaseException as error:
        if folder and (state.began or not past):
            record.leave(folder, facts | guard.facts(), keep, tables, error, console)
        raise
    folder = Path(trainer.strategy.broadcast(str(folder)))  # only the first process has made one
    model.load_state_dict(checkpoint.read(folder)[1])
    if any(stopper.stopping_reason_message for stopper in stop):
        facts["told"].append(record.ended(recipe.early_stopping.patience, keep.monitor, len(tables.metrics)))
    if recipe.overfit:
        facts["told"].append(record.learned(data.images["train"], keep, tables.metrics))
    facts["told"] += [*guard.told("train", "val"), record.kept(keep, bool(recipe.overfit))]
    facts |= guard.facts() | {"kept_epoch": keep.epoch, "finished": True}
    facts["commands"]["prolong it"] = f"{facts['commands'].pop('go on')} --resume_anyway --trainer.max_epochs N"
    if trainer.is_global_zero:  # finished, whatever a test may still find
        record.write_json(folder / "run.json", facts)
        record.draw_curves(folder, keep)
        write_page(folder)
        size = keep_newest(folder, 1)
        console.print(f"{folder / STATE} ({size / 1e6:.0f} MB) is there to prolong it; it may be deleted.")
    for line in facts["told"][1:]:
        console.print(line)
    _finish(folder, recipe, data, trainer, module, guard, facts, console)
    return folder


def _finish(
    folder: Path,
    recipe: Recipe,
    data: Splits,
    trainer: Trainer,
    module: Training,
    guard: Guard,
    facts: dict[str, Any],
    console: Console,
) -> None:
    """Measure every test split, draw samples, and write both into the report: what was measured, where one fails."""
    found: dict[str, dict[str, Any]] = {}
    try:
        with sentences(recipe), interruptible():
            if trainer.is_global_zero:
                tested.clear(folder)  # of a model that was kept before, tested while the training went on
            for split in data.test_splits:
                found[split] = measure(trainer, module, data, split)
                console.print(record.told(split, found[split]))
                facts["told"] += guard.told(split) if split != "val" else []
                facts |= guard.facts()
                if trainer.is_global_zero:
                    by_image, device = tested.take(module, data, split), trainer.strategy.root_device
                    tested.write(folder, by_image, module.model, data, device)
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


def _write_start(folder: Path | None, recipe: Recipe, data: Splits, facts: dict[str, Any]) -> None:
    """What the folder holds from the first step on; once a state is read, lest one that doesn't fit changes a run."""
    if folder is None:
        return
    tested.clear(folder)  # of a run that is prolonged
    with aside(folder / "recipe.yaml") as temporary:
        command = f"# zoo train {shlex.quote(str(folder / 'recipe.yaml'))}\n"
        temporary.write_text(command + recipe.to_yaml(), encoding="utf-8")
    record.write_json(folder / record.SPLITS, data.names())
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
    plan = getattr(model.encoder, "plan", None)
    if plan and plan.size:
        yield f"{plan.name} takes images of {record.by(plan.size)} alone, so every image is resized to that inside it."
    if data.images["train"] < recipe.data.batch_size and not recipe.overfit:
        yield f"there are but {data.images['train']} training images, so batches are of that size."
    if recipe.overfit:
        yield (
            f"overfit: trained, validated and tested on the same {data.images['train']} images, whole and unvaried; an"
            f" epoch goes {PASSES} times over them."
        )
    if recipe.class_weights == "balanced":
        yield "class weights are counted from the masks of the train split."
    rates = [key for key in ("encoder_lr", "layer_decay") if getattr(recipe.optimizer, key) is not None]
    if rates and not any(p.requires_grad for p in backbone(model).parameters()):
        change = "changes" if len(rates) == 1 else "change"
        yield f"the whole backbone is frozen, so optimizer.{' and optimizer.'.join(rates)} {change} nothing."
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
