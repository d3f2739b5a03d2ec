"""The table of docs/export.md: models as exported programs, and how far they are from the models.

python -m tests.checkpoints.export_table > docs/export.md
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import zoo

FORMATS = ("onnx", "pt2")
SIDE = 224
MODELS: dict[str, dict[str, Any]] = {
    "unet / resnet34": dict(name="unet", encoder="resnet34", num_classes=3),
    "unet / convnext_tiny": dict(name="unet", encoder="convnext_tiny"),
    "unet / vit_small_patch16_224": dict(name="unet", encoder="vit_small_patch16_224"),
    "unet / tf_efficientnet_lite0": dict(name="unet", encoder="tf_efficientnet_lite0"),
    "unet / levit_128s": dict(name="unet", encoder="levit_128s"),
    "unet / swin_tiny_patch4_window7_224": dict(name="unet", encoder="swin_tiny_patch4_window7_224"),
    "reverse_attention / resnet34": dict(name="reverse_attention", encoder="resnet34"),
    "pranet": dict(name="pranet"),
    "linear / vit_small_patch14_dinov2, frozen": dict(
        name="linear", encoder={"name": "vit_small_patch14_dinov2", "frozen": True}, num_classes=21
    ),
    "smp/fpn / resnet34": dict(name="smp/fpn", encoder="resnet34"),
    "smp/upernet / resnet34": dict(name="smp/upernet", encoder="resnet34"),
    "smp/pspnet / resnet34": dict(name="smp/pspnet", encoder="resnet34"),
}


USE = """
## In another program

```python
import numpy as np, onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession("model.onnx")
pixels = np.asarray(Image.open("photo.jpg").convert("RGB"), np.float32) / 255  # (H, W, 3)
answer = session.run(["mask"], {"image": pixels.transpose(2, 0, 1)[None]})[0][0]  # (H, W), class ids
```

`image` is float32 (B, C, H, W), colours as RGB, in [0, 1]. What `intensity` says (`bits`, `window`, `percentile`,
`zscore`; `zoo show model.onnx` tells it) is done on reading, so it is not in the file and has to be applied
first; `zoo predict` does.
"""


def trained_a_little(**spec: Any) -> zoo.Model:
    """A model with drawn weights whose norms have seen some images."""
    torch.manual_seed(0)
    model = zoo.create_model(**spec).train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(2, model.in_channels, 96, 128))
    return model.eval()


def size_of(model: zoo.Model) -> tuple[int, int] | None:
    """The size that a model has to be exported at, or None where it takes any."""
    from zoo.checkpoints.export import only_fixed

    return (SIDE, SIDE) if only_fixed(model) else None


def differences(model: zoo.Model, kind: str) -> dict[str, float]:
    """The largest difference of each output of a program of that kind."""
    with tempfile.TemporaryDirectory() as folder:
        largest: dict[str, float] = zoo.export(model, Path(folder) / f"model.{kind}", size=size_of(model))["check"][
            "largest"
        ]
    return largest


def main() -> None:
    from zoo.checkpoints.export import BATCHES, CHECKED, TOLERANCE

    sizes = ", ".join(f"{height}x{width}" for height, width in CHECKED)
    print("# Exported programs beside their models\n")
    print("Written by `python -m tests.checkpoints.export_table > docs/export.md`; a slow test exports each again.\n")
    print(
        "The largest absolute difference from the eager model in float32 on a CPU, over images of"
        f" {sizes} (of a fixed program: at its size), each in batches of {' and '.join(map(str, BATCHES))}."
        f" No file is written above {TOLERANCE:g}. Weights are drawn, norms have seen some images.\n"
    )
    print(f"Torch {torch.__version__.partition('+')[0]}.\n")
    print("| model | size | format | logits | probabilities |\n|---|---|---|---|---|")
    for name, spec in MODELS.items():
        model = trained_a_little(**spec)
        size = size_of(model)
        for kind in FORMATS:
            found = differences(model, kind)
            print(
                f"| {name} | {'fixed' if size else 'any'} | {kind} | {found['logits']:.1e}"
                f" | {found['probabilities']:.1e} |",
                flush=True,
            )
    print(USE, end="")


if __name__ == "__main__":
    sys.exit(main())
