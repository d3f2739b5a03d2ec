"""A model as one file that other programs run, compared with the model before the file is there.

What is exported is `model.answer`: size, normalisation, padding, softmax and threshold are inside, raw scores come
beside the decision.
"""

import copy
import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from zoo.checkpoints.programs import FACTS, Exported, needed, open_program, quiet, told
from zoo.encoders.tracing import open_sizes
from zoo.errors import UserError
from zoo.files import aside, is_program

Size = tuple[int, int]

TOLERANCE = 1e-4  # that an output may differ by from the model's, absolute
OPSET = 20
ONNX_LIMIT = 2**31 - 2**20  # bytes of one protobuf message, with room for the graph
SAMPLE: Size = (131, 203)  # to trace on: sides of no multiple, larger than a patch, not equal
CHECKED: tuple[Size, ...] = ((160, 224), (83, 105), (20, 37), (1, 33))
BATCHES = (1, 3)
NAMES = ("batch", "channels", "height", "width")
WINDOWS = ("window_size", "partition_size")  # what timm's nets that cut maps into windows call them


class Answer(nn.Module):
    """`model.answer`, tensors alone, as a module to trace."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
        return tensors(self.model.answer(image, **inputs))


def export(
    model: Any, path: str | Path, *, size: Sequence[int] | None = None, opset: int = OPSET, force: bool = False
) -> dict[str, Any]:
    """Write a model as `path`, .onnx or .pt2 (torch.export); returns what the file says of itself, the check included.

    Inputs and outputs have their names: `image` (B, C, H, W) and what the task takes beside it; raw outputs and the
    task's answer. B is open; so are H and W, unless size = (height, width) fixes them. opset: of ONNX. force: replace a
    file that exists. The file is run at several sizes and batches and compared with the model; only if no output
    differs by more than 1e-4 it takes its name. A decision may differ where its scores are as close as that.
    Raises UserError for a path that cannot be written, packages that are missing, a net that cannot be traced at open
    sizes, and a program that answers otherwise.
    """
    if not hasattr(model, "example_inputs"):
        what = f"is a {type(model).__name__}" if not isinstance(model, str | Path) else f"is {str(model)!r}"
        there = repr(str(model)) if isinstance(model, str | Path) else "RUN"
        raise UserError(f"What is exported is one model, and this {what}; give zoo.load_model({there}).")
    path = Path(path)
    check_path(path, force)
    if path.suffix.lower() == ".onnx":
        needed("onnx", "onnxscript", "onnxruntime")
        weights = sum(value.numel() for value in model.state_dict().values()) * 4  # float32
        if weights >= ONNX_LIMIT:
            raise UserError(
                f"The weights take {weights / 1e9:.1f} GB, and an ONNX file holds 2; export a .pt2 instead."
            )
    fixed = check_size(size)
    if fixed is None and (reason := only_fixed(model)):
        raise UserError(f"{reason}, so this net exports only at a fixed size: give --size 512x512 (size=(512, 512)).")
    plain = copy.deepcopy(model).cpu().float().eval()
    image = example(plain.in_channels, 2, fixed or SAMPLE)
    inputs = {"image": image, **plain.example_inputs(image)}
    with torch.no_grad():
        raw = list(tensors(plain(**inputs)))
        names = list(tensors(plain.answer(**inputs)))
    facts = {
        "config": plain.config,
        "inputs": list(inputs),
        "outputs": names,
        "raw": raw,
        "size": fixed,
        "grid": plain.grid,
        "least": plain.least,
        "bytes": plain.bytes_taken(fixed),
        "versions": versions(path),
        **({"opset": opset} if path.suffix.lower() == ".onnx" else {}),
    }
    program = trace(plain, inputs, fixed)
    made = converted(program, list(inputs), names, opset) if path.suffix.lower() == ".onnx" else program
    with aside(path) as temporary:
        write(made, temporary, facts)
        facts["check"] = compare(plain, open_program(temporary, "cpu"))
        write(made, temporary, facts)  # the same program, which now tells what it was found to be
    return facts


def only_fixed(model: Any) -> str | None:
    """Why a model exports at a fixed size alone, as the start of a sentence; None where it takes any.

    Sizes stay open before an image is brought to the one size of the model, or of its net.
    """
    if model.input_size:
        return None
    decoder, encoder = model.config["decoder"]["name"], model.config["encoder"]["name"]
    if not getattr(model.decoder, "open_sizes", True):
        return f"The decoder {decoder!r} cuts its maps into parts whose number or size follows the image's"
    if cuts_windows(model.encoder):
        return f"The encoder {encoder!r} cuts its maps into windows"
    return None


def cuts_windows(encoder: nn.Module) -> bool:
    """Whether an encoder cuts maps of any size into windows, whose number then follows the image's size."""
    if getattr(getattr(encoder, "plan", None), "size", None):
        return False
    return any(getattr(module, name, None) for module in encoder.modules() for name in WINDOWS)


def trace(model: Any, inputs: Mapping[str, Tensor], fixed: Size | None) -> ExportedProgram:
    """The answer as a graph. Raises UserError where that fails: with --size as the way out where sizes were open."""
    planes = ("image", *model.task.planes)
    sides = {} if fixed else {2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    shapes = {
        name: {0: Dim.DYNAMIC, **(sides if name in planes else dict.fromkeys(range(1, value.ndim), Dim.AUTO))}
        for name, value in inputs.items()
    }
    try:
        with quiet(), open_sizes(), torch.no_grad():
            program = torch.export.export(Answer(model), (), dict(inputs), dynamic_shapes=shapes)
    except Exception as error:  # torch.export's, sympy's or the net's own
        if fixed:
            raise UserError(f"torch {torch.__version__} cannot export this model: {told(error)}") from error
        raise UserError(
            f"This net exports only at a fixed size: give --size 512x512 (size=(512, 512)). torch says: {told(error)}"
        ) from error
    # What it noted of the sample, such as more than one image, without need: `compare` shows for which sizes it holds.
    program._guards_code = []
    return program


def converted(program: ExportedProgram, inputs: list[str], outputs: list[str], opset: int) -> Any:
    """The graph in ONNX's operators. Raises UserError where one has none, or where there is no such opset."""
    try:
        with quiet():
            made: Any = torch.onnx.export(
                program, dynamo=True, opset_version=opset, input_names=inputs, output_names=outputs, verbose=False
            )
    except Exception as error:  # the exporter's own, wrapped several times
        raise UserError(
            f"torch {torch.__version__} cannot put this net into ONNX ({told(error)}); a .pt2 file may take it,"
            " perhaps at a fixed size alone: -o model.pt2 --size 512x512."
        ) from error
    if (found := made.model.opset_imports[""]) != opset:  # a conversion that fails leaves the model as it was
        raise UserError(
            f"This net cannot be put into ONNX's opset {opset} (onnxscript's converter leaves it at {found}); take"
            f" --opset {found} (opset={found}), or leave it out."
        )
    graph = made.model.graph
    image = graph.inputs[0]
    open_ones = {str(dim): name for dim, name in zip(image.shape, NAMES, strict=True) if not isinstance(dim, int)}
    for value in (*graph.inputs, *graph.outputs):  # "s40" is nobody's name for a batch
        for i, dim in enumerate(value.shape):
            if str(dim) in open_ones:
                value.shape[i] = open_ones[str(dim)]
    return made


def write(made: Any, path: Path, facts: Mapping[str, Any]) -> None:
    """A program, torch's or ONNX's, with its facts as a file."""
    text = json.dumps(facts)
    with quiet():
        if path.suffix.lower() == ".pt2":
            torch.export.save(made, path, extra_files={f"{FACTS}.json": text})
        else:
            made.model.metadata_props[FACTS] = text
            made.save(path, external_data=False)


def compare(model: Any, exported: Exported) -> dict[str, Any]:
    """The largest differences between a program and its model, at several sizes and batches.

    Raises UserError where one is above `TOLERANCE`, and where a decision differs that is no tie.
    """
    fixed = exported.facts["size"]
    sizes, names = ([tuple(fixed)] if fixed else CHECKED), exported.facts["outputs"]
    largest = dict.fromkeys(names, 0.0)
    ties = 0
    for batch in BATCHES:
        for size in sizes:
            image = example(model.in_channels, batch, size)
            inputs = {"image": image, **model.example_inputs(image)}
            where = f"at {size[0]}x{size[1]}, batch {batch}"
            with torch.no_grad():
                ours = tensors(model.answer(**inputs))
                try:
                    theirs = exported.run(inputs, names)
                except Exception as error:  # the runtime's own
                    raise UserError(f"The program does not run {where} ({told(error)}){_way_out(fixed)}") from error
                margins = model.task.margins(ours) if hasattr(model.task, "margins") else {}
            for name in names:
                if ours[name].shape != theirs[name].shape:
                    raise UserError(
                        f"The program's {name!r} {where} is {tuple(theirs[name].shape)}, the model's is"
                        f" {tuple(ours[name].shape)}{_way_out(fixed)}"
                    )
                if ours[name].is_floating_point():
                    difference = float((ours[name] - theirs[name]).abs().max())
                    largest[name] = max(largest[name], difference)
                    wrong = not difference <= TOLERANCE  # written so that it holds for NaN
                else:
                    differs = ours[name] != theirs[name]
                    near = margins[name] <= TOLERANCE if name in margins else torch.zeros_like(differs)
                    ties += int((differs & near).sum())
                    wrong = bool((differs & ~near).any())
                    difference = float((differs & ~near).sum())
                if wrong:
                    raise UserError(
                        f"The program's {name!r} differs from the model's {where}:"
                        f" {difference:.3g}{'' if ours[name].is_floating_point() else ' values'}{_way_out(fixed)}"
                    )
    floats = {name: value for name, value in largest.items() if ours[name].is_floating_point()}
    return {
        "largest": floats, "ties": ties, "sizes": [list(size) for size in sizes], "batches": list(BATCHES),
        "tolerance": TOLERANCE,
    }  # fmt: skip


def check_path(path: Path, force: bool) -> None:
    """Raise UserError where no program can be written as `path`."""
    if not is_program(path):
        raise UserError(f"{str(path)!r} ends in {path.suffix or 'nothing'!r}; programs are .onnx or .pt2.")
    if path.is_dir():
        raise UserError(f"{str(path)!r} is a folder; name a file.")
    if path.exists() and not force:
        raise UserError(f"{str(path)!r} exists; name another file, or replace it with --force (force=True).")
    if not path.parent.is_dir():
        raise UserError(f"There is no folder {str(path.parent)!r} to write {path.name!r} into; make it first.")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"The folder {str(path.parent)!r} may not be written to; choose another.")


def check_size(size: Sequence[int] | None) -> Size | None:
    """(height, width) or None. Raises UserError for what is neither."""
    if size is None:
        return None
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise UserError(f"size is {size!r}; give (height, width) in pixels.")
    return (size[0], size[1])


def versions(path: Path) -> dict[str, str]:
    """What wrote the file."""
    found = {"visionzoo": version("visionzoo"), "torch": str(torch.__version__)}
    if path.suffix.lower() == ".onnx":
        found |= {module.__name__: module.__version__ for module in needed("onnx", "onnxscript", "onnxruntime")}
    return found


def example(channels: int, batch: int, size: Size) -> Tensor:
    """Images (batch, channels, *size) in [0, 1], smooth with noise on them, the same at every call."""
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch, channels, 6, 6, generator=random)
    smooth = nn.functional.interpolate(coarse, size, mode="bilinear")
    return (0.7 * smooth + 0.3 * torch.rand(smooth.shape, generator=random)).contiguous()


def tensors(outputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Those outputs that are tensors: what a program can give."""
    return {name: value for name, value in outputs.items() if isinstance(value, Tensor)}


def _way_out(fixed: Any) -> str:
    other = "Export the other format" if fixed else "Give --size 512x512, or export the other format"
    return f"; no file was written. {other} (.pt2, .onnx)."
