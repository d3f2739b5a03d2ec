"""The whole function: an encoder under a decoder under a task, from pixels of any size to answers at that size.

Everything between is in here and in the config: resizing to `input_size`, normalisation, padding, softmax, thresholds.
Nobody outside a model resizes, normalises or thresholds for it.
"""

import copy
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from zoo import inference
from zoo.checkpoints import folder as checkpoint
from zoo.datasets.intensity import Intensity, read_image
from zoo.datasets.pixels import find_images
from zoo.errors import UserError
from zoo.layers import resize
from zoo.prediction import Prediction, default_colors

Source = str | Path | Image.Image | np.ndarray | Tensor
PRECISIONS: dict[str, torch.dtype | None] = {"32": None, "bf16": torch.bfloat16, "16": torch.float16}


class Model(nn.Module):
    """An encoder, a decoder and a task as one function of pixels; built by `create_model`, rebuilt from `.config`.

    Call it in one of three ways: `model(image)` gives raw outputs at the image's size, `model.answer(image)` adds the
    task's answer, `model.predict(files)` is the answer on anything a person has.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: nn.Module, decoder: nn.Module, task: Any, config: dict[str, Any]):
        super().__init__()
        self.encoder, self.decoder, self.task, self.config = encoder, decoder, task, config
        self.input_size = tuple(config["input_size"]) if config["input_size"] else None
        self.intensity = Intensity.of(config["intensity"] or {})
        # not in the state_dict: they are the config's
        self.register_buffer("mean", torch.tensor(config["mean"]).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]).view(1, -1, 1, 1), persistent=False)
        self._faster: tuple[Any, nn.Module] | None = None

    def forward(self, image: Tensor, **inputs: Tensor) -> dict[str, Any]:
        """image (B, C, H, W), float in [0, 1] or what `intensity` gives, any H and W >= 1; raw outputs at H x W.

        Segmentation: `logits` (B, K, H, W), and while `decoder.training` also `aux`. In eval mode the image is brought
        to `input_size` first, where there is one; in training it is taken as the loader gives it.
        Raises UserError for another rank or number of channels.
        """
        if image.ndim != 4 or image.shape[1] != self.mean.shape[1]:
            raise UserError(
                f"The model takes images (B, {self.mean.shape[1]}, H, W); this one is {tuple(image.shape)}."
                " Set in_channels when you create the model, or add the batch dimension."
            )
        if not image.is_floating_point() or 0 in image.shape:
            raise UserError(
                f"The model takes float images that are not empty; this one is {image.dtype} {tuple(image.shape)}."
                " Divide bytes by 255, or give them to `predict`."
            )
        x = (image - self.mean) / self.std
        if self.input_size and not self.training:
            x = resize(x, self.input_size, antialias=True)
        outputs: dict[str, Any] = self.decoder(self.encoder(x), x, **inputs)
        for name in self.task.maps:  # back the way the image came: to what the encoder saw, then to the image
            outputs[name] = resize(resize(outputs[name], x.shape[-2:]), image.shape[-2:])
        return outputs

    def answer(self, image: Tensor, *, threshold: float | None = None, **inputs: Tensor) -> dict[str, Any]:
        """Raw outputs and the task's answer, which is what validation measures and what is exported.

        Segmentation adds `probabilities` (B, K, H, W) and `mask` (B, H, W) class ids, or (B, K, H, W) bool where
        classes overlap. threshold: for this call, in place of the task's own.
        """
        outputs = self(image, **inputs)
        return {**outputs, **self.task.answer(outputs, threshold)}

    def predict(
        self,
        files: Source | Iterable[Source],
        *,
        device: str | torch.device | None = None,
        batch_size: int = 1,
        precision: str = "32",
        num_workers: int = 2,
        threshold: float | None = None,
        failed: list[UserError] | None = None,
    ) -> Any:
        """The answer on a path, PIL image, array or tensor, or on a list, folder or generator of them.

        One image gives a `Prediction`, a list gives a list, a folder or generator an iterator that reads as it goes.
        Arrays are (H, W) or (H, W, C), tensors (C, H, W); uint8 and uint16 are scaled to [0, 1] as files are, floats
        are taken as they are. device: where to compute (default: where the model is). batch_size: images of equal size
        computed together. precision: "32", "bf16" or "16". num_workers: threads that read files ahead. failed: a list
        that takes the errors of images which cannot be read; they are then left out, and the others answered.
        Runs in eval mode on a copy with BatchNorm folded, equal but for float32's rounding; the model is left as it is.
        Raises UserError for what is missing, is no image, is empty or has other channels than the model.
        """
        if precision not in PRECISIONS:
            raise UserError(f"There is no precision {precision!r}; choose one of {', '.join(PRECISIONS)}.")
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; it must be at least 1.")
        target = _device(device, self.mean.device)
        single = isinstance(files, Image.Image | np.ndarray | Tensor) or (
            isinstance(files, str | Path) and not Path(files).is_dir()
        )
        if single:
            return next(self._predict([files], target, 1, precision, 0, threshold, None))  # type: ignore[list-item]
        sources = find_images(files) if isinstance(files, str | Path) else files
        predictions = self._predict(sources, target, batch_size, precision, num_workers, threshold, failed)  # type: ignore[arg-type]
        return list(predictions) if isinstance(files, list | tuple) else predictions

    def _predict(
        self,
        sources: Iterable[Source],
        target: torch.device,
        batch_size: int,
        precision: str,
        num_workers: int,
        threshold: float | None,
        failed: list[UserError] | None,
    ) -> Iterator[Prediction]:
        run = self._fast(target)

        def read(source: Source) -> tuple[Path | None, np.ndarray] | None:
            try:
                return self._read(source)
            except UserError as error:
                if failed is None:
                    raise
                failed.append(error)
                return None

        images = (found for found in inference.read_ahead(read, sources, num_workers) if found)
        for batch in inference.batches(images, batch_size, lambda item: item[1].shape):
            pixels = torch.from_numpy(np.stack([pixels for _, pixels in batch])).to(target)
            pixels = pixels.permute(0, 3, 1, 2)  # channels-last in memory, as `faster` likes it
            image = (pixels / 255 if pixels.dtype == torch.uint8 else pixels).to(self.mean.dtype)
            kind = PRECISIONS[precision]
            with torch.inference_mode(), torch.autocast(target.type, kind or torch.bfloat16, enabled=kind is not None):
                answer = self.task.answer(run(image), threshold)
            arrays = {key: value.cpu().numpy() for key, value in answer.items()}
            for i, (path, shown) in enumerate(batch):
                yield Prediction(
                    image=shown,
                    arrays={key: value[i] for key, value in arrays.items()},
                    path=path,
                    class_names=self.task.class_names or (),
                    class_colors=self.task.class_colors or default_colors(self.task.num_classes),
                )

    def _read(self, source: Source) -> tuple[Path | None, np.ndarray]:
        """The pixels (H, W, C) of one source, uint8 or float32, with where they came from."""
        if isinstance(source, Tensor):
            if source.ndim not in (2, 3):
                raise UserError(f"A tensor to predict on is (C, H, W); this one is {tuple(source.shape)}.")
            source = (source.float() if source.is_floating_point() else source).detach().cpu().numpy()
            source = source if source.ndim == 2 else source.transpose(1, 2, 0)
        path = Path(source) if isinstance(source, str | Path) else None
        return path, read_image(path or source, self.intensity, self.mean.shape[1])

    def _fast(self, device: torch.device) -> nn.Module:
        """The faster equal of this model on `device`, made again whenever the model has changed.

        A change is seen in the weights themselves: versions and ids miss what writes through `.data`, as averages do.
        """
        exact = torch.float32 if self.mean.device.type == "mps" else torch.float64
        state = [t.detach() for t in (*self.parameters(), *self.buffers())]
        sums = torch.stack([t.to(exact).sum() for t in state] + [t.to(exact).norm() for t in state]).tolist()
        key = (device, self.input_size, [(t.dtype, t.shape) for t in state], sums)
        if self._faster is None or self._faster[0] != key:
            small = copy.deepcopy(self).cpu()
            small.input_size = None  # what is checked on a small image holds for a large one
            example = torch.rand(1, self.mean.shape[1], 64, 96, generator=torch.Generator().manual_seed(0))
            fast = inference.faster(small, example)
            fast.input_size = self.input_size  # type: ignore[assignment]
            self._faster = (key, fast.to(device))
        return self._faster[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_faster": None}  # neither copied nor pickled: it is made again where it is needed

    def save(self, folder: str | Path) -> Path:
        """Write `model.safetensors` and `config.json` into `folder`, aside first, then renamed; returns the folder."""
        return checkpoint.write(folder, self.state_dict(), self.config)


def _device(device: str | torch.device | None, default: torch.device) -> torch.device:
    if device is None:
        return default
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError, NotImplementedError):
        there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        use = there or "cpu"
        raise UserError(f"torch {torch.__version__} finds no device {str(device)!r} here; use {use}.") from None
    return target
