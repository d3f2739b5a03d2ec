"""visionzoo: a zoo of vision encoder-decoder models. `import zoo` is free; each name below loads what it needs."""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "create_model": "zoo.create",
    "load_model": "zoo.create",
    "convert_weights": "zoo.create",
    "list_models": "zoo.create",
    "list_encoders": "zoo.create",
    "list_decoders": "zoo.create",
    "Model": "zoo.model",
    "Prediction": "zoo.prediction",
    "register_encoder": "zoo.registry",
    "register_decoder": "zoo.registry",
    "register_model": "zoo.registry",
    "register_task": "zoo.registry",
    "UserError": "zoo.errors",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
