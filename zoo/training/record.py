"""What a run's folder says of it: facts, sentences, figures and JSON; and what an unfinished run leaves."""

import json
import math
import platform
import shlex
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import timm
import torch
from rich.console import Console

import zoo
from zoo.errors import UserError
from zoo.files import aside
from zoo.metrics import LESS_IS_BETTER
from zoo.model import Model
from zoo.prediction import default_colors
from zoo.report import figures
from zoo.report.charts import curves
from zoo.report.page import read_table, write_page
from zoo.training.callbacks import METRICS, TIMINGS, Keep, Tables
from zoo.training.data import Splits, fold_of
from zoo.training.keys import Recipe
from zoo.training.state import newest
from zoo.training.surroundings import one_line

SAMPLES = 6
SPLITS = "splits.json"
LEARNED = 0.9  # of the monitor, from which on few images count as learned

Scores = Mapping[str, float]


def describe(recipe: Recipe, data: Splits, model: Model) -> tuple[str, str]:
    """What is trained, and on what: "unet with resnet34, 24.4 M parameters", "folder (photos/): ..., seed 0"."""
    encoder, decoder = model.config["encoder"]["name"], model.config["decoder"]["name"]
    counts = ", ".join(f"{number} {name}" for name, number in data.images.items()) + " images"
    if recipe.overfit:
        images = f"{data.images['train']} image{'s' * (data.images['train'] != 1)}"
        counts = f"overfit to {images} of train, which are those of val too"
    parameters = sum(p.numel() for p in model.parameters())
    classes = model.task.num_classes
    words = "one class and background" if classes == 1 else f"{classes} classes"
    size = f" of {by(recipe.data.size)}" if recipe.data.size else ""
    fold = f", {fold_of(recipe)} as val" if fold_of(recipe) else ""
    return (
        f"{model.config['name'] or decoder} with {encoder}, {parameters / 1e6:.1f} M parameters",
        f"{data.card.name} ({recipe.data.root or data.card.title}): {words}, {counts}{fold}, batches of"
        f" {recipe.data.batch_size}{size}, {_length(recipe.trainer)}, seed {recipe.seed}",
    )


def facts_of(recipe: Recipe, data: Splits, model: Model, folder: Path | None) -> dict[str, Any]:
    """What run.json holds from the start."""
    what, on = describe(recipe, data, model)
    overfit, name = "overfit" if recipe.overfit else "", f"run {folder.name}" if folder else ""
    title = (recipe.name, fold_of(recipe), overfit, name)
    return {
        "title": ", ".join(filter(None, title)),
        "told": [f"{what}; trained on {on}."],
        "images": data.images,
        "overfit": recipe.overfit,
        "size": recipe.data.size and list(recipe.data.size),
        "parameters": sum(p.numel() for p in model.parameters()),
        "monitor": recipe.monitor,
        "class_names": _class_names(model),
        "class_colors": [list(color) for color in _colors(model)],
        "environment": _environment(),
        "commands": {
            "train this again": f"zoo train {shlex.quote(f'{folder}/recipe.yaml')}",
            "go on": f"zoo train --resume {shlex.quote(str(folder))}",
            "test it": f"zoo test {shlex.quote(str(folder))}",
            "use it": f"zoo predict {shlex.quote(str(folder))} IMAGE -o OUT",
        },
    }


def kept(keep: Keep, overfit: bool) -> str:
    """Which epoch's model the run holds, and why."""
    images = "the images trained on" if overfit else "the val split"
    why = f"the best on {images} ({keep.monitor} {keep.score:.4f})"
    if keep.monitor is None or math.isnan(keep.score):
        why = "the last" if keep.monitor is None else f"the last, since {keep.monitor} was not measured"
    return f"Epoch {keep.epoch} is kept, {why}."


def ended(patience: int | None, monitor: str | None, epoch: int) -> str:
    """That the training ended early, and why."""
    return f"The training ended after epoch {epoch}: {monitor} was no better in {patience} validations."


def learned(images: int, keep: Keep, rows: Sequence[Mapping[str, float]]) -> str:
    """Whether a training on few images (`overfit`) has learned them, by the monitor; and what became of the loss."""
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    facts = f"the loss went from {losses[0]:.4f} in the first epoch to {losses[-1]:.4f} in the last"
    if keep.monitor is None or keep.monitor in LESS_IS_BETTER or math.isnan(keep.score):
        return f"Trained and measured on the same {images} images: {facts}."
    if keep.score >= LEARNED:
        return f"It can learn: {keep.monitor} is {keep.score:.4f} on the {images} images trained on; {facts}."
    return (
        f"It has not learned its {images} images: {keep.monitor} is {keep.score:.4f} on them, below {LEARNED}; {facts}."
        " Look at the masks (`zoo data check`), at optimizer.lr and at the loss, or train for more epochs."
    )


def told(split: str, scores: Scores) -> str:
    """A split's overall figures in a line."""
    overall = [f"{name} {value:.4f}" for name, value in scores.items() if name != "images" and "/" not in name]
    return f"{split}: {', '.join(overall)} (n = {scores['images']:g} image{'s' * (scores['images'] != 1)})"


def leave(
    folder: Path,
    facts: dict[str, Any],
    keep: Keep,
    tables: Tables,
    error: BaseException,
    console: Console,
) -> None:
    """What an unfinished run leaves: nothing where nothing was saved yet, else what was saved and a word on it."""
    saved = newest(folder)
    if keep.epoch is None and not saved and not list(folder.glob("bad_batch*")):
        shutil.rmtree(folder, ignore_errors=True)
        if facts:  # else nobody has heard of the folder yet
            console.print(f"Nothing was saved yet, so {folder} is gone.")
        return
    what = "was interrupted" if isinstance(error, KeyboardInterrupt) else f"ended with an error ({one_line(error)})"
    there = f"the checkpoint is epoch {keep.epoch}'s" if keep.epoch else "there is no checkpoint yet"
    notice = f"This training {what} {_when(tables)}; {there}."
    if saved:
        notice += f" `{facts['commands']['go on']}` goes on after step {saved}."
    try:
        write_json(folder / "run.json", facts | {"notice": notice, "kept_epoch": keep.epoch})
        draw_curves(folder, keep)
        console.print(f"{notice} {write_page(folder)} shows it.")
    except OSError as also:
        console.print(f"{notice} The report could not be written ({one_line(also)}).")


def _when(tables: Tables) -> str:
    """ "in epoch 3", or "after epoch 2" where the next has not begun: what is summed up is then still its."""
    done = len(tables.metrics)
    between = bool(tables.timings) and tables.training == tables.timings[-1]["train_seconds"]
    return f"after epoch {done}" if between else f"in epoch {done + 1}"


def draw_curves(folder: Path, keep: Keep) -> None:
    """curves.png, of what metrics.csv and timings.csv hold."""
    if rows := read_table(folder / METRICS):
        curves(rows, folder / "curves.png", kept=keep.epoch, timings=read_table(folder / TIMINGS))


def draw_samples(
    model: Model, data: Splits, split: str, device: torch.device, path: Path, indices: Iterable[int] | None = None
) -> None:
    """The figure of these images of a split, in this order; None = of some at even distances through it."""
    dataset = data.original(split)
    if indices is None:
        indices = sorted({round(i) for i in np.linspace(0, len(dataset) - 1, SAMPLES)})
    model.to(device).eval()
    found = []
    for index in indices:
        try:
            sample = dataset[index]
        except UserError:
            if data.recipe.data.on_error == "skip":
                continue
            raise
        with torch.inference_mode():
            answer = model.answer(sample["image"][None].to(device))
        image, truth = sample["image"].permute(1, 2, 0).numpy(), sample["mask"].numpy()
        prediction, name = answer["mask"][0].cpu().numpy(), Path(sample["path"]).name
        found.append(figures.Sample(image, truth, prediction, model.task.ignore_index, name))
    figures.samples(found, _class_names(model), _colors(model), path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write aside, then rename; numbers that are none (nan) become null."""
    with aside(path) as temporary:
        temporary.write_text(json.dumps(_without_nan(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def by(size: Iterable[int]) -> str:
    """(352, 480) as "352x480"."""
    return "x".join(map(str, size))


def _without_nan(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _without_nan(value) for key, value in content.items()}
    return None if isinstance(content, float) and math.isnan(content) else content


def _class_names(model: Model) -> list[str]:
    task = model.task
    if task.class_names:
        return list(task.class_names)
    return ["foreground"] if task.num_classes == 1 else [str(k) for k in range(task.num_classes)]


def _colors(model: Model) -> list[Any]:
    return list(model.task.class_colors or default_colors(model.task.num_classes))


def _environment() -> dict[str, str]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    versions = {m.__name__: str(m.__version__) for m in (torch, lightning, timm, np)}
    own = {"visionzoo": zoo.__version__, "python": platform.python_version(), "system": platform.platform(terse=True)}
    return {**own, **versions, "device": device}


def _length(trainer: Mapping[str, Any]) -> str:
    bounds = (("max_epochs", "epochs"), ("max_steps", "steps"), ("max_time", "of time"))
    told = [f"{trainer[key]} {word}" for key, word in bounds if trainer.get(key) not in (None, -1)]
    return " or ".join(told) or "until it is stopped"
