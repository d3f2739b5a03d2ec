"""`zoo doctor`: versions, devices, optional packages, and what works here."""

import argparse
import os
import platform
import re
import shutil
import sys
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path
from typing import Any

import zoo


def add(commands: Any) -> Any:
    command = commands.add_parser(
        "doctor",
        help="versions, devices and what works here",
        description="Tell what is installed, which devices there are, and try what a training needs.",
    )
    command.set_defaults(run=doctor)
    return command


def doctor(args: argparse.Namespace) -> int:
    """`zoo doctor`: 0 where training works, 1 where it doesn't."""
    needed, optional = requirements()
    print(f"visionzoo {zoo.__version__}   Python {platform.python_version()}   {platform.platform()}")
    missing = [name for name in needed if not installed(name)]
    print("\npackages\n  " + "  ".join(f"{name} {installed(name) or 'MISSING'}" for name in needed))
    print("\noptional packages")
    for extra, names in optional.items():
        lacks = [name for name in names if not installed(name)]
        print(f"  {extra:6} " + (f"lacks {', '.join(lacks)}: pip install 'visionzoo[{extra}]'" if lacks else "works"))
    print("\ndevices")
    for line in devices():
        print(f"  {line}")
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    print(f"\nfolder\n  {Path.cwd()}: {'writable' if os.access('.', os.W_OK) else 'NOT WRITABLE'}, {free:.1f} GiB free")
    broken = f"packages are missing: {', '.join(missing)}" if missing else training_step()
    print("\ntraining\n  " + (f"FAILS: {broken}" if broken else "a step of PraNet's decoder works"))
    return 1 if broken else 0


def requirements() -> tuple[list[str], dict[str, list[str]]]:
    """(packages that visionzoo needs, those of each extra), from its own metadata, so that no list is kept twice."""
    try:
        facts = metadata("visionzoo")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return ["torch", "timm", "lightning"], {}
    needed: list[str] = []
    optional: dict[str, list[str]] = {}
    for line in facts.get_all("Requires-Dist") or []:
        name = re.split(r"[^\w.-]", line)[0]
        extra = re.search(r"extra == ['\"](\w+)['\"]", line)
        (optional.setdefault(extra[1], []) if extra else needed).append(name)
    optional.pop("dev", None)  # for those who work on visionzoo itself
    return needed, optional


def installed(name: str) -> str:
    """The version of an installed package, "" where it is missing."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def devices() -> list[str]:
    """A line for each device that torch can compute on."""
    try:
        import torch
    except ImportError as error:
        return [f"torch does not import: {error}"]
    lines = [f"cpu     {os.cpu_count()} cores, {torch.get_num_threads()} threads in torch"]
    for i in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(i)
        kinds = "bf16 and 16" if torch.cuda.is_bf16_supported() else "16"
        lines.append(f"cuda:{i}  {facts.name}, {facts.total_memory / 2**30:.0f} GiB, precision 32, {kinds}")
    if torch.backends.mps.is_available():
        lines.append("mps     Apple GPU")
    if len(lines) == 1:
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU alone"
        lines.append(f"no GPU  torch {torch.__version__} is {built}")
    return lines


def training_step() -> str:
    """Try one training step of a small model on the CPU; what went wrong, "" where nothing did."""
    try:
        import torch

        model = zoo.create_model("pranet", encoder="resnet18", num_classes=2)
        image, mask = torch.rand(2, 3, 64, 64), torch.randint(0, 2, (2, 64, 64))
        model.task.loss(model(image), {"image": image, "mask": mask})["loss"].backward()
    except Exception as error:  # the doctor tells whatever it is and goes on
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''} ({sys.executable})"
    return ""
