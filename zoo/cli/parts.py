"""What `zoo show` tells of a model, a decoder or an encoder; builds it without weights to count."""

import warnings
from typing import Any

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import zoo
from zoo.registry import DECODERS, ENCODERS, MODELS, Entry

Facts = list[tuple[str, str]]

SIDE = 224  # of the image MACs are counted on, where a model has no size of its own
STRIDES = (4, 8, 16, 32)


def part_names() -> list[str]:
    """Every name that `facts` knows."""
    return [*zoo.list_models(), *zoo.list_decoders(), *zoo.list_encoders()]


def facts(name: str) -> Facts:
    """(what, value) of a model, decoder or encoder, in that order where a name is more than one of them."""
    if name in zoo.list_models():
        return _model(name)
    return _decoder(name) if name in zoo.list_decoders() else _encoder(name)


def _model(name: str) -> Facts:
    entry, model = MODELS.entries[name], _on_meta(lambda: zoo.create_model(name))
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
        *_counted(model, size, config["in_channels"]),
    ]


def _decoder(name: str) -> Facts:
    entry, model = DECODERS.entries[name], _on_meta(lambda: zoo.create_model(name, encoder="resnet34"))
    return [
        ("decoder", f"{name}: {entry.summary}"),
        *_source(entry),
        ("tasks", ", ".join(entry.tasks) or "all"),
        ("strides", ", ".join(map(str, model.encoder.strides))),
        ("options", _options(model.config["decoder"]) or "none"),
        ("counted", "on resnet34, one class"),
        *_counted(model, (SIDE, SIDE), 3),
    ]


def _encoder(name: str) -> Facts:
    from zoo.encoders import create_encoder

    encoder = _on_meta(lambda: create_encoder({"name": name}, in_channels=3, strides=STRIDES, weights=None))
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
    return found + _counted(encoder, (SIDE, SIDE), 3)


def _source(entry: Entry) -> Facts:
    found = [("paper", entry.paper), ("code licence", entry.licence), ("weights licence", entry.weights_licence)]
    found += [("official weights", f"{file}: {place}") for file, place in entry.weights]
    return [(what, value) for what, value in found if value]


def _options(part: dict[str, Any]) -> str:
    """{name: unet, upsample: nearest} as "upsample nearest"."""
    return ", ".join(f"{key} {value}" for key, value in part.items() if key != "name")


def _on_meta(build: Any) -> Any:
    """What `build` makes, without memory for weights where that works: some nets compute with theirs when built."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.device("meta"):
                return build().eval()
        except (NotImplementedError, RuntimeError):
            return build().eval()


def _counted(module: nn.Module, size: tuple[int, int], channels: int) -> Facts:
    """Parameters, of the parts too, and MACs: half of what torch's counter calls FLOPs."""
    parts = {key: sum(p.numel() for p in part.parameters()) for key, part in module.named_children()}
    total = sum(p.numel() for p in module.parameters())
    shares = [f"{key} {parts[key] / 1e6:.2f} M" for key in ("encoder", "decoder") if key in parts]
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    image = torch.zeros(1, channels, *size, device=device)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        module(image)
    return [
        ("parameters", f"{total / 1e6:.2f} M" + (f" ({', '.join(shares)})" if shares else "")),
        ("MACs", f"{counter.get_total_flops() / 2e9:.2f} G at {size[0]}x{size[1]}"),
    ]
