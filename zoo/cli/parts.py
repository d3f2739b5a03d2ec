"""What `zoo show` tells of a model, a decoder or an encoder; builds it without weights to count."""

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import zoo
from zoo.checkpoints.export import cuts_windows, only_fixed
from zoo.encoders.probe import without_memory
from zoo.registry import DECODERS, ENCODERS, MODELS, Entry

Facts = list[tuple[str, str]]

SIDE = 224  # of the image MACs are counted on, where a model has no size of its own
STRIDES = (4, 8, 16, 32)
FIXED = "fixed size alone (zoo export --size HxW)"


def part_names() -> list[str]:
    """Every name that `facts` knows."""
    return [*zoo.list_models(), *zoo.list_decoders(), *zoo.list_encoders()]


def facts(name: str) -> Facts:
    """(what, value) of a model, decoder or encoder, in that order where a name is more than one of them."""
    if name in zoo.list_models():
        return _model(name)
    return _decoder(name) if name in zoo.list_decoders() else _encoder(name)


def _model(name: str) -> Facts:
    entry = MODELS.entries[name]
    model, counted = _counted(lambda: zoo.create_model(name))
    config = model.config
    size = tuple(config["input_size"] or (SIDE, SIDE))
    return [
        ("model", f"{name}: {entry.summary}"),
        *_source(entry),
        ("task", ", ".join(entry.tasks)),
        *((kind, config[kind]["name"]) for kind in ("encoder", "decoder")),
        ("options", _options(config["encoder"] | config["decoder"]) or "none"),
        ("classes", str(config["num_classes"])),
        ("image", f"any size, resized to {size[0]}x{size[1]} inside" if config["input_size"] else "any size"),
        ("export", FIXED if only_fixed(model) else "any size"),
        *counted,
    ]


def _decoder(name: str) -> Facts:
    entry = DECODERS.entries[name]
    model, counted = _counted(lambda: zoo.create_model(name, encoder="resnet34"))
    return [
        ("decoder", f"{name}: {entry.summary}"),
        *_source(entry),
        ("tasks", ", ".join(entry.tasks) or "all"),
        ("strides", ", ".join(map(str, model.encoder.strides))),
        ("options", _options(model.config["decoder"]) or "none"),
        ("export", FIXED if only_fixed(model) else "any size, where its encoder takes one"),
        ("counted", "on resnet34, one class"),
        *counted,
    ]


def _encoder(name: str) -> Facts:
    from zoo.encoders import create_encoder

    encoder, counted = _counted(lambda: create_encoder({"name": name}, in_channels=3, strides=STRIDES, weights=None))
    found: Facts = [("encoder", name)]
    if name in ENCODERS.entries:
        found += _source(ENCODERS.entries[name])
    else:
        found += [("code", f"timm {timm.__version__}, Apache-2.0")]
        tags = [tag.partition(".")[2] for tag in timm.list_pretrained(f"{name}.*")]
        configs = {tag: timm.get_pretrained_cfg(f"{name}.{tag}") for tag in tags}
        licences = [f"{tag} ({config.license or 'licence not stated'})" for tag, config in configs.items() if config]
        found += [("weights", ", ".join(licences) or "none"), ("image", encoder.plan.takes)]
    found += [
        ("channels", f"{', '.join(map(str, encoder.channels))} at strides {', '.join(map(str, encoder.strides))}")
    ]
    found += [("export", FIXED if cuts_windows(encoder) else "any size")]
    return found + counted


def _source(entry: Entry) -> Facts:
    found = [("paper", entry.paper), ("code licence", entry.licence), ("weights licence", entry.weights_licence)]
    found += [("official weights", f"{file}: {place}") for file, place in entry.weights]
    return [(what, value) for what, value in found if value]


def _options(part: dict[str, Any]) -> str:
    """{name: unet, upsample: nearest} as "upsample nearest"."""
    return ", ".join(f"{key} {value}" for key, value in part.items() if key != "name")


def _counted(build: Callable[[], Any]) -> tuple[Any, Facts]:
    """What `build` makes, in eval mode, and its parameters and MACs (half of what torch's counter calls FLOPs)."""

    def count() -> tuple[Any, tuple[int, int], int]:
        module = build().eval()
        config = getattr(module, "config", {})
        height, width = config.get("input_size") or (SIDE, SIDE)
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            module(torch.zeros(1, config.get("in_channels", 3), height, width))
        return module, (height, width), counter.get_total_flops()

    module, (height, width), flops = without_memory(count)
    parts = {key: sum(p.numel() for p in part.parameters()) for key, part in module.named_children()}
    total = sum(p.numel() for p in module.parameters())
    shares = [f"{key} {parts[key] / 1e6:.2f} M" for key in ("encoder", "decoder") if key in parts]
    return module, [
        ("parameters", f"{total / 1e6:.2f} M" + (f" ({', '.join(shares)})" if shares else "")),
        ("MACs", f"{flops / 2e9:.2f} G at {height}x{width}"),
    ]
