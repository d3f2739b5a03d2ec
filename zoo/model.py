"""The whole function: an encoder under a decoder under a task, from pixels of any size to answers at that size.

Everything between is in here and in the config: resizing to `input_size`, normalisation, padding, softmax, thresholds.
Nobody outside a model resizes, normalises or thresholds for it.
"""

import copy
import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.checkpoints import folder as checkpoint
from zoo.datasets.intensity import Intensity
from zoo.errors import UserError
from zoo.inference.folding import faster
from zoo.inference.memory import Counted, count
from zoo.inference.predict import predict
from zoo.inference.sources import Source, check_names
from zoo.layers import resize


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
        parameters = inspect.signature(decoder.forward).parameters.values()
        self._taken = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}  # what the decoder takes by name
        missing = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty} - {"keep"}
        self._needed = (*task.planes, *sorted(missing - set(task.planes)))
        self._faster: tuple[Any, nn.Module] | None = None

    def forward(self, image: Tensor, **inputs: Tensor) -> dict[str, Any]:
        """image (B, C, H, W), float in [0, 1] or what `intensity` gives, any H and W >= 1; raw outputs at H x W.

        Segmentation: `logits` (B, K, H, W), and while `decoder.training` also `aux`. In eval mode the image is brought
        to `input_size` first, where there is one; in training it is taken as the loader gives it. inputs: what the task
        takes beside the image; its planes (B, n, H, W) in [0, 1] go through the encoder as further channels.
        Raises UserError for another rank or number of channels, and for inputs that are missing or not the task's.
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
        self._check(image, inputs)
        planes = [inputs[name] for name in self.task.planes]
        x = (image - self.mean) / self.std
        if planes:
            x = torch.cat([x, *planes], dim=1)
        if self.input_size and not self.training:
            x = resize(x, self.input_size, antialias=True)
        given = {name: value for name, value in inputs.items() if name in self._taken}
        if "keep" in self._taken:  # the masked kind: the encoder sees but the visible patches
            given["keep"] = self.decoder.keep(x, **given)  # type: ignore[operator]
            features = self.encoder(x, keep=given["keep"])
        else:
            features = self.encoder(x)
        outputs: dict[str, Any] = self.decoder(features, x, **given)
        for name in self.task.maps:  # back the way the image came: to what the encoder saw, then to the image
            outputs[name] = resize(resize(outputs[name], x.shape[-2:]), image.shape[-2:])
        return outputs

    def _check(self, image: Tensor, inputs: Mapping[str, Tensor]) -> None:
        check_names(self.task, inputs)
        for name in self._needed:
            if name not in inputs:
                raise UserError(f"The model needs `{name}` beside the image: model(image, {name}=...).")
        for name, channels in self.task.planes.items():
            expected = (image.shape[0], channels, *image.shape[-2:])
            if tuple(inputs[name].shape) != expected:
                raise UserError(f"`{name}` is {tuple(inputs[name].shape)}; for this image it is {expected}.")

    def answer(self, image: Tensor, *, threshold: float | None = None, **inputs: Tensor) -> dict[str, Any]:
        """Raw outputs and the task's answer, which is what validation measures and what is exported.

        Segmentation adds `probabilities` (B, K, H, W) and `mask` (B, H, W) class ids, or (B, K, H, W) bool where
        classes overlap. threshold: for this call, in place of the task's own.
        """
        outputs = self(image, **inputs)
        return {**outputs, **self.finish(outputs, {"image": image, **inputs}, threshold)}

    def predict(
        self,
        files: Source | Iterable[Source],
        *,
        device: str | torch.device | None = None,
        batch_size: int = 1,
        precision: str = "32",
        num_workers: int = 2,
        threshold: float | None = None,
        memory: str | int | None = None,
        tta: str = "none",
        drop: Sequence[str] = (),
        failed: list[UserError] | None = None,
        **inputs: Any,
    ) -> Any:
        """The answer on a path, PIL image, array or tensor, or on a list, folder or generator of them.

        One image gives a `Prediction`, a list gives a list, a folder or generator an iterator that reads as it goes.
        Arrays are (H, W) or (H, W, C), tensors (C, H, W); uint8 and uint16 are scaled to [0, 1] as files are, floats
        are taken as they are. device: where to compute (default: where the model is). batch_size: images of equal size
        computed together. precision: "32", "bf16" or "16". num_workers: threads that read files ahead. failed: a list
        that takes the errors of images which cannot be read; they are then left out, and the others answered.
        memory: what the work may take on the device, as "4GB" or bytes (default: three quarters of what is free); an
        image that needs more is computed in overlapping tiles, their raw outputs blended, and what is large of it and
        its answer is memory-mapped. tta: "none", "flips" (4) or "d4" (all 8 flips and turns), raw outputs averaged.
        drop: keys of the answer that are not kept, such as "probabilities".
        inputs: what the task takes beside the image, by name: for one image one, for a list a list, for a folder a
        folder with files of the same names.
        Runs in eval mode on a copy with BatchNorm folded, equal but for float32's rounding; the model is left as it is.
        Raises UserError for what is missing, is no image, is empty or has other channels than the model.
        """
        return predict(
            self,
            files,
            inputs,
            device=device,
            batch_size=batch_size,
            precision=precision,
            num_workers=num_workers,
            threshold=threshold,
            memory=memory,
            tta=tta,
            drop=drop,
            failed=failed,
        )

    def example_inputs(self, image: Tensor) -> dict[str, Tensor]:
        """Plausible inputs for an image (B, C, H, W): to check a copy on, or to export with."""
        batch, _, height, width = image.shape
        half = torch.arange(width, device=image.device) < width // 2
        planes = {
            name: half.to(image.dtype).expand(batch, count, height, width) for name, count in self.task.planes.items()
        }
        return planes | {name: example(image) for name, example in self.task.prompts.items()}

    @property
    def in_channels(self) -> int:
        """Channels of an image."""
        return int(self.mean.shape[1])

    @property
    def least(self) -> int:
        """Pixels that it computes on at least: those of the size that images are brought to; 0 where there is none."""
        plan = getattr(self.encoder, "plan", None)
        return math.prod(self.input_size or (plan and plan.size) or (0,))

    @property
    def grid(self) -> int | None:
        """What a tile's place must be a multiple of to be divided as the whole is; None where the whole is resized."""
        plan = getattr(self.encoder, "plan", None)
        if self.least:
            return None
        return math.lcm(*self.encoder.strides, plan.multiple if plan else 1)  # type: ignore[misc]

    hidden = (0, 0)  # bytes that predict's memory budget could not see: of a model it sees them all
    fixed = None  # no size is the only one

    def bytes_taken(self, size: tuple[int, int] | None = None) -> list[int]:
        """What answering takes at once, as `zoo.inference.memory` counts it: for an image of `size`, or two small ones.

        Of open sizes nothing for a model that takes prompts, which is never tiled.
        """
        run = self.ready(torch.device("cpu"))  # what predict runs
        if size:
            image = torch.zeros(1, self.in_channels, *size, dtype=self.dtype)
            with torch.inference_mode(), Counted() as counted:
                inputs = self.example_inputs(image)
                self.finish(run(image, **inputs), {"image": image, **inputs})
            return [counted.peak]
        if self.task.prompts:
            return [0, 0]
        channels = {"image": self.in_channels, **self.task.planes}
        with torch.inference_mode():
            cost = count(run, self.finish, tuple(self.task.maps), channels, torch.zeros((), dtype=self.dtype), {})
        return [taken for _, taken in cost.counted]

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @property
    def dtype(self) -> torch.dtype:
        return self.mean.dtype

    def finish(
        self, outputs: Mapping[str, Any], inputs: Mapping[str, Tensor], threshold: float | None = None
    ) -> dict[str, Tensor]:
        """The task's answer on raw outputs (B, ..., H, W); inputs: `image` and what went in beside it."""
        answer: dict[str, Tensor] = self.task.answer(outputs, threshold, inputs)
        return answer

    def ready(self, device: torch.device) -> nn.Module:
        """The faster equal of this model on `device`, in eval mode; made again whenever the model has changed.

        A change is seen in the weights themselves: versions and ids miss what writes through `.data`, as averages do.
        Of each tensor the norm and the product with a ramp are kept; the latter sees a change of order.
        """
        exact = torch.float32 if self.mean.device.type == "mps" else torch.float64
        state = [t.detach() for t in (*self.parameters(), *self.buffers())]
        ramp = torch.arange(1, 2**18, dtype=exact, device=self.mean.device).sqrt_()
        parts = (x.to(exact, copy=True) for t in state for x in _parts(t, len(ramp)))  # little memory
        seen = torch.stack([y for x in parts for y in (x.norm(), x @ ramp[: len(x)])]).tolist()
        key = (device, self.input_size, [(t.dtype, t.shape) for t in state], seen)
        if self._faster is None or self._faster[0] != key:
            small = copy.deepcopy(self).cpu()
            small.input_size = None  # what is checked on a small image holds for a large one
            example = torch.rand(1, self.mean.shape[1], 64, 96, generator=torch.Generator().manual_seed(0))
            fast = faster(small, example, **self.example_inputs(example))
            fast.input_size = self.input_size  # type: ignore[assignment]
            self._faster = (key, fast.to(device))
        return self._faster[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_faster": None}  # neither copied nor pickled: it is made again where it is needed

    def save(self, folder: str | Path) -> Path:
        """Write `model.safetensors` and `config.json` into `folder`, aside first, then renamed; returns the folder."""
        return checkpoint.write(folder, self.state_dict(), self.config)


def _parts(t: Tensor, most: int) -> list[Tensor]:
    """A tensor's values in order, at most so many at once."""
    flat = t.clone().reshape(-1)  # a copy: tensors made in inference mode refuse views
    return [flat[i : i + most] for i in range(0, len(flat), most)]
