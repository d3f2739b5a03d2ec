"""A run: a recipe trained into a folder with the checkpoint, the tables, the figures and the report; and its test.

runs/<recipe>/<n>/ holds recipe.yaml (resolved), model.safetensors + config.json, metrics.csv, timings.csv, test.json,
curves.png, samples.png, report.html, and run.json: what the report says beside these.
"""

import copy
import json
import math
import os
import platform
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import timm
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer, seed_everything
from rich.console import Console

import zoo
from zoo.checkpoints import folder as checkpoint
from zoo.create import create_model, load_model
from zoo.datasets.card import Card, load_card
from zoo.datasets.folder import FolderDataset
from zoo.datasets.look import resolve
from zoo.datasets.splits import split_pairs
from zoo.datasets.transforms import Transform
from zoo.errors import UserError, nearest
from zoo.metrics import create_metrics
from zoo.model import Model
from zoo.prediction import default_colors
from zoo.report import figures
from zoo.report.page import read_table, write_page
from zoo.training.callbacks import METRICS, Keep, Show, Tables
from zoo.training.loader import eval_loader, train_loader
from zoo.training.module import Training, create_optimizer, create_schedule
from zoo.training.recipe import Recipe, load_recipe
from zoo.training.surroundings import create_console, interruptible, is_first, one_line, quiet, sentences

SAMPLES = 6
EPOCHS = 20  # where a recipe bounds neither epochs, steps nor time


def train(recipe: Recipe, *, runs: str | Path = "runs") -> Path:
    """Train a recipe, test what is kept, and write the report; returns the run's folder, runs/<recipe>/<n>.

    After an interruption the folder keeps what was saved and says so; a run that ends with an error before its first
    epoch leaves no folder. Raises UserError for what is wrong in the recipe or its data.
    """
    with quiet(), sentences(recipe), interruptible():
        return _train(recipe, Path(runs))


def test(
    run: str | Path,
    split: str | None = None,  # noqa: PT028
    overrides: Iterable[str] = (),  # noqa: PT028
) -> dict[str, float]:
    """The metrics of a run's model on a split of its data; also written to test.json and into the report.

    split: None = every split beside train and val (then, of several, each metric's name opens with "<split>/"), or val
    where there is none. overrides: recipe keys as on the command line, such as "--data.root", "elsewhere/".
    Measured on other data, nothing in the run's folder changes.
    """
    folder = Path(run)
    recipe = load_recipe(folder / "recipe.yaml", overrides := list(overrides))
    with quiet(), sentences(recipe), interruptible():
        console = create_console()
        model = load_model(folder)
        data = open_data(recipe, channels=model.config["in_channels"])
        chosen = [split] if split else data.test_splits
        if not chosen:
            raise UserError(f"The data {data.card.name!r} has neither a test nor a val split; give --split train.")
        for name in chosen:
            data.check_split(name)
        module = Training(model, create_metrics(model.task))
        show = Show(console, Tables(None), Keep(None, None))
        trainer = _trainer({k: v for k, v in recipe.trainer.items() if k in EVALUATION_KEYS}, [show])
        found = {name: _measure(trainer, module, data, name) for name in chosen}
        for name, scores in found.items():
            console.print(_told(name, scores))
        if not any(word.startswith("--data.") for word in overrides) and trainer.is_global_zero:
            _write_json(folder / "test.json", _read_json(folder / "test.json") | _without_nan(found))
            write_page(folder)
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


@dataclass(frozen=True)
class Splits:
    """The data of a recipe: its resolved card, and the number of images in each split."""

    recipe: Recipe
    card: Card
    images: dict[str, int]

    @property
    def test_splits(self) -> list[str]:
        """Every split beside train and val; where there is none, val; nothing where there is but train."""
        names = [name for name in self.images if name not in ("train", "val")]
        return names or [name for name in self.images if name == "val"]

    def check_split(self, name: str) -> None:
        if name not in self.images:
            raise UserError(
                f"The data {self.card.name!r} has no split {name!r}{nearest(name, self.images) or '.'}"
                f" It has: {', '.join(self.images)}."
            )

    def training(self) -> FolderDataset:
        data = self.recipe.data
        transform = Transform(
            data.size, data.fit, data.augment, soft_masks=data.soft_masks, ignore_index=self.card.ignore_index
        )
        return FolderDataset(self.card, "train", transform, self.recipe.seed)

    def original(self, split: str) -> FolderDataset:
        """The split as it is stored: original sizes, nothing random."""
        return FolderDataset(self.card, split)

    def eval_loader(self, split: str) -> Any:
        data = self.recipe.data
        height, width = data.size or (512, 512)
        pixels = data.batch_size * height * width  # what fitted into a training step fits without gradients
        return eval_loader(
            self.original(split), batch_size=data.batch_size, pixels=pixels, num_workers=data.num_workers
        )


def open_data(recipe: Recipe, *, channels: int | None = None) -> Splits:
    """The recipe's card, resolved: files found, class values known. channels: the model's, None = the card's."""
    card = load_card(recipe.data.card, recipe.data.root)
    card = resolve(replace(card, channels=channels) if channels else card)
    return Splits(recipe, card, {name: len(pairs) for name, pairs in split_pairs(card).items()})


def new_folder(parent: Path) -> Path:
    """parent/<n> with the next free number, made by this process alone (mkdir is exclusive)."""
    parent.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(entry.name) for entry in parent.iterdir() if entry.name.isdigit()), default=0)
    while True:
        try:
            (parent / str(number)).mkdir()
            return parent / str(number)
        except FileExistsError:
            number += 1


def _train(recipe: Recipe, runs: Path) -> Path:
    console = create_console()
    recipe = copy.deepcopy(recipe)
    if not {"max_epochs", "max_steps", "max_time"} & set(recipe.trainer):
        recipe.trainer["max_epochs"] = EPOCHS
    data = open_data(recipe, channels=recipe.model.get("in_channels"))
    if data.card.found:
        console.print(data.card.found)
        # a later test, perhaps of another folder, is to read masks as this training does
        looked = {"values": data.card.values, "num_classes": data.card.num_classes}
        recipe.data.card = {**recipe.data.card, **looked}
    seed_everything(recipe.seed, verbose=False)
    model = _model(recipe, data.card)
    recipe.model["num_classes"] = model.task.num_classes
    for note in _notes(recipe, data, model):
        console.print(f"Note: {note}")
    model.task.check_weights(recipe.loss or {}, getattr(model.decoder, "loss_weights", {}))

    # what Lightning would only find out once the training has begun
    create_optimizer([p for p in model.parameters() if p.requires_grad], recipe.optimizer)
    create_schedule(recipe.scheduler, steps=1)

    metrics = create_metrics(model.task)
    monitor = _monitor(recipe, data, metrics)
    module = Training(model, metrics, weights=recipe.loss, optimizer=recipe.optimizer, scheduler=recipe.scheduler)
    loader = train_loader(
        data.training(),
        batch_size=recipe.data.batch_size,
        num_workers=recipe.data.num_workers,
        seed=recipe.seed,
        rates=recipe.data.rates,
    )
    held_out = data.eval_loader("val") if "val" in data.images else None
    tables, keep = Tables(None), Keep(None, monitor)
    trainer = _trainer(recipe.trainer, [tables, keep, Show(console, tables, keep)])

    folder = new_folder(runs / recipe.name) if is_first() else None
    tables.folder = keep.folder = folder
    facts = _facts(recipe, data, model, folder)
    if folder:
        (folder / "recipe.yaml").write_text(f"# zoo train {folder / 'recipe.yaml'}\n{recipe.to_yaml()}")
        _write_json(folder / "run.json", facts | {"notice": "This training has not ended yet."})
    console.print(f"{facts['told'][0]}\nThe run lies in {folder}")
    try:
        with interruptible():
            trainer.fit(module, loader, held_out)
    except BaseException as error:
        if folder:
            _leave(folder, facts, keep, trainer, error, console)
        raise
    folder = Path(trainer.strategy.broadcast(str(folder)))  # only the first process has made one
    model.load_state_dict(checkpoint.read(folder)[1])
    facts |= {"told": [*facts["told"], _kept(keep)], "kept_epoch": keep.epoch}
    found = {name: _measure(trainer, module, data, name) for name in data.test_splits}
    if trainer.is_global_zero:
        split = (data.test_splits or ["train"])[0]
        _samples(trainer, model, data, split, folder / "samples.png")
        _write_json(folder / "test.json", _without_nan(found))
        _write_json(folder / "run.json", facts | {"samples": split})
        _curves(folder, keep)
        page = write_page(folder)
        console.print(facts["told"][-1])
        for name, scores in found.items():
            console.print(_told(name, scores))
        console.print(f"The report is {page}")
    return folder


def _model(recipe: Recipe, card: Card) -> Model:
    """The recipe's model with the card's classes, colours, channels and intensity; what the recipe says, holds."""
    keys = {key: value for key, value in recipe.model.items() if value is not None or key == "input_size"}
    keys.setdefault("num_classes", card.num_classes)
    keys.setdefault("in_channels", card.channels)
    task: dict[str, Any] = {"ignore_index": card.ignore_index}
    for option, values in (("class_names", card.classes), ("class_colors", card.colors)):
        if len(values) == keys["num_classes"]:
            task[option] = [value if isinstance(value, str) else list(value) for value in values]
    return create_model(**keys, task={**task, **recipe.task}, intensity=card.intensity or None)


def _notes(recipe: Recipe, data: Splits, model: Model) -> Iterator[str]:
    size = recipe.data.size
    if size and model.input_size and tuple(size) != model.input_size:
        yield (
            f"the model resizes every image to {_by(model.input_size)} when it answers, but trains on {_by(size)};"
            " set data.size or model.input_size to make them equal."
        )
    if data.images["train"] < recipe.data.batch_size:
        yield f"there are but {data.images['train']} training images, so batches are of that size."
    if recipe.monitor and "val" not in data.images:
        yield "the data has no val split, so the last epoch is kept."


def _monitor(recipe: Recipe, data: Splits, metrics: Any) -> str | None:
    """What the best epoch is chosen by; checked now, not after the first epoch."""
    if recipe.monitor is None or "val" not in data.images:
        return None
    known = list(metrics.compute())
    metrics.reset()
    if recipe.monitor not in known:
        raise UserError(
            f"There is no metric {recipe.monitor!r} to monitor{nearest(recipe.monitor, known) or '.'}"
            f" There are: {', '.join(known)}; null keeps the last epoch."
        )
    return recipe.monitor


def _trainer(options: dict[str, Any], callbacks: list[Any]) -> Trainer:
    """Lightning's Trainer with a run's defaults under the recipe's `trainer`. Raises UserError where they don't fit."""
    gpu = torch.cuda.is_available() and options.get("accelerator", "auto") in ("auto", "gpu", "cuda")
    defaults = {"precision": "16-mixed" if gpu else "32-true", "num_sanity_val_steps": 0}
    own = dict(
        callbacks=callbacks, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    try:
        return Trainer(**{**defaults, **options, **own})
    except (MisconfigurationException, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"The recipe's trainer keys do not fit: {one_line(error)}") from None


def _measure(trainer: Trainer, module: Training, data: Splits, split: str) -> dict[str, float]:
    trainer.test(module, data.eval_loader(split), verbose=False)
    return {"images": module.images, **module.scores}


def _samples(trainer: Trainer, model: Model, data: Splits, split: str, path: Path) -> None:
    """The figure of samples at even distances through the split."""
    dataset, device = data.original(split), trainer.strategy.root_device
    model.to(device).eval()
    found = []
    for index in sorted({round(i) for i in np.linspace(0, len(dataset) - 1, SAMPLES)}):
        sample = dataset[index]
        with torch.inference_mode():
            answer = model.answer(sample["image"][None].to(device))
        image, truth = sample["image"].permute(1, 2, 0).numpy(), sample["mask"].numpy()
        prediction, name = answer["mask"][0].cpu().numpy(), Path(sample["path"]).name
        found.append(figures.Sample(image, truth, prediction, model.task.ignore_index, name))
    figures.samples(found, _class_names(model), model.task.class_colors or default_colors(model.task.num_classes), path)


def _curves(folder: Path, keep: Keep) -> None:
    if rows := read_table(folder / METRICS):
        figures.curves(rows, folder / "curves.png", kept=keep.epoch)


def _class_names(model: Model) -> list[str]:
    task = model.task
    if task.class_names:
        return list(task.class_names)
    return ["foreground"] if task.num_classes == 1 else [str(k) for k in range(task.num_classes)]


def _facts(recipe: Recipe, data: Splits, model: Model, folder: Path | None) -> dict[str, Any]:
    """What run.json holds from the start."""
    encoder, decoder = model.config["encoder"]["name"], model.config["decoder"]["name"]
    counts = ", ".join(f"{number} {name}" for name, number in data.images.items())
    classes = model.task.num_classes
    parameters = sum(p.numel() for p in model.parameters())
    size = f" of {_by(recipe.data.size)}" if recipe.data.size else ""
    told = (
        f"{model.config['name'] or decoder} with {encoder}, {parameters / 1e6:.1f} M parameters; trained on"
        f" {data.card.name} ({recipe.data.root or data.card.title}): {_words(classes)}, {counts} images,"
        f" batches of {recipe.data.batch_size}{size}, {_length(recipe.trainer)}, seed {recipe.seed}."
    )
    return {
        "title": f"{recipe.name}, run {folder.name}" if folder else recipe.name,
        "told": [told],
        "images": data.images,
        "parameters": parameters,
        "monitor": recipe.monitor,
        "class_names": _class_names(model),
        "class_colors": [list(color) for color in model.task.class_colors or default_colors(classes)],
        "environment": _environment(),
        "commands": {
            "train this again": f"zoo train {folder}/recipe.yaml",
            "test it": f"zoo test {folder}",
            "use it": f"zoo predict {folder} IMAGE -o OUT",
        },
    }


def _kept(keep: Keep) -> str:
    why = f"the best on the val split ({keep.monitor} {keep.score:.4f})"
    if keep.monitor is None or math.isnan(keep.score):
        why = "the last" if keep.monitor is None else f"the last, since {keep.monitor} was not measured"
    return f"Epoch {keep.epoch} is kept, {why}."


def _leave(
    folder: Path, facts: dict[str, Any], keep: Keep, trainer: Trainer, error: BaseException, console: Console
) -> None:
    """What an unfinished run leaves: nothing before its first checkpoint, else what was saved and a word on it."""
    if keep.epoch is None:
        shutil.rmtree(folder, ignore_errors=True)
        console.print(f"Nothing was saved yet, so {folder} is gone.")
        return
    what = "was interrupted" if isinstance(error, KeyboardInterrupt) else f"ended with an error ({one_line(error)})"
    notice = f"This training {what} in epoch {trainer.current_epoch + 1}; the checkpoint is epoch {keep.epoch}'s."
    _write_json(folder / "run.json", facts | {"notice": notice, "kept_epoch": keep.epoch})
    _curves(folder, keep)
    page = write_page(folder)
    console.print(f"{notice} {page} shows it.")


def _environment() -> dict[str, str]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    versions = {m.__name__: str(m.__version__) for m in (torch, lightning, timm, np)}
    own = {"visionzoo": zoo.__version__, "python": platform.python_version(), "system": platform.platform(terse=True)}
    return {**own, **versions, "device": device}


def _length(trainer: dict[str, Any]) -> str:
    bounds = (("max_epochs", "epochs"), ("max_steps", "steps"), ("max_time", "of time"))
    return " or ".join(f"{trainer[key]} {word}" for key, word in bounds if trainer.get(key))


def _words(classes: int) -> str:
    return "one class and background" if classes == 1 else f"{classes} classes"


def _told(split: str, scores: dict[str, float]) -> str:
    overall = [f"{name} {value:.4f}" for name, value in scores.items() if name != "images" and "/" not in name]
    return f"{split}: {', '.join(overall)} (n = {scores['images']} images)"


def _without_nan(found: dict[str, dict[str, float]]) -> dict[str, dict[str, float | None]]:
    """For JSON, which has no nan: what could not be measured is null."""
    return {split: {k: None if math.isnan(v) else v for k, v in scores.items()} for split, scores in found.items()}


def _by(size: Iterable[int]) -> str:
    return "x".join(map(str, size))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(aside, path)


def _read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
