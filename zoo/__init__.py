"""visionzoo: a zoo of vision encoder-decoder models. `import zoo` is free; each name below loads what it needs."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.checkpoints.export import export
    from zoo.create import (
        convert_weights,
        create_model,
        list_decoders,
        list_encoders,
        list_models,
        load_model,
        load_program,
    )
    from zoo.ensemble import Ensemble
    from zoo.errors import UserError
    from zoo.model import Model
    from zoo.prediction import Prediction
    from zoo.registry import register_decoder, register_encoder, register_model, register_task

__version__ = "0.1.0"

_HOMES = {
    "create_model": "zoo.create",
    "load_model": "zoo.create",
    "load_program": "zoo.create",
    "export": "zoo.checkpoints.export",
    "convert_weights": "zoo.create",
    "list_models": "zoo.create",
    "list_encoders": "zoo.create",
    "list_decoders": "zoo.create",
    "Ensemble": "zoo.ensemble",
    "Model": "zoo.model",
    "Prediction": "zoo.prediction",
    "register_encoder": "zoo.registry",
    "register_decoder": "zoo.registry",
    "register_model": "zoo.registry",
    "register_task": "zoo.registry",
    "UserError": "zoo.errors",
}

__all__ = [
    "Ensemble",
    "Model",
    "Prediction",
    "UserError",
    "__version__",
    "convert_weights",
    "create_model",
    "export",
    "list_decoders",
    "list_encoders",
    "list_models",
    "load_model",
    "load_program",
    "register_decoder",
    "register_encoder",
    "register_model",
    "register_task",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}")
    if name.startswith("register_"):
        importlib.import_module("zoo.create")  # the built-in parts have their names before anyone else's
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
