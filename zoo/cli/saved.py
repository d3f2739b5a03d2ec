"""What `zoo show` tells of a file or folder: an exported program, a run or checkpoint."""

import json
from typing import Any

from zoo.cli.train import find_run
from zoo.errors import UserError

Facts = list[tuple[str, str]]


def run_facts(name: str) -> Facts:
    """(what, value) of a run or checkpoint, from its config and what the run noted."""
    run = find_run(name)
    try:
        config = json.loads((run / "config.json").read_text(encoding="utf-8"))
        noted = json.loads((run / "run.json").read_text(encoding="utf-8")) if (run / "run.json").is_file() else {}
        found = [("run" if noted else "checkpoint", str(run)), *config_facts(config)]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{str(run)!r} holds a config.json or run.json that is damaged, or not ours.") from None
    if noted.get("kept_epoch") is not None:
        found.append(("kept epoch", str(noted["kept_epoch"])))
    return found


def program_facts(name: str) -> Facts:
    """(what, value) of a .onnx or .pt2 file, as it says of itself."""
    from zoo.checkpoints.programs import open_program

    facts = open_program(name, "cpu").facts
    check = facts["check"]
    sizes = ", ".join(f"{height}x{width}" for height, width in check["sizes"])
    largest = ", ".join(f"{output} {value:.1e}" for output, value in check["largest"].items())
    size = "x".join(map(str, facts["size"])) if facts["size"] else "any"
    return [
        ("program", name),
        *config_facts(facts["config"]),
        ("size", f"{size}, any batch"),
        ("takes", ", ".join(facts["inputs"])),
        ("gives", ", ".join(facts["outputs"])),
        ("checked", f"at {sizes} in batches of {' and '.join(map(str, check['batches']))}"),
        ("differs", f"from its model by at most {largest}"),
        *([("opset", str(facts["opset"]))] if "opset" in facts else []),
        ("written by", ", ".join(f"{package} {version}" for package, version in facts["versions"].items())),
    ]


def config_facts(config: dict[str, Any]) -> Facts:
    """(what, value) of a model's config: its parts with their options, classes, image."""
    names = config["task"].get("class_names")
    channels = f"{config['in_channels']} channels"
    size = config["input_size"]
    return [
        *([("model", config["name"])] if config["name"] else []),
        *((kind, _part(config[kind])) for kind in ("encoder", "decoder", "task")),
        ("classes", f"{config['num_classes']}" + (f" ({', '.join(names)})" if names else "")),
        ("image", f"{channels}, " + (f"resized to {size[0]}x{size[1]} inside" if size else "as it comes")),
        *([("intensity", _options(config["intensity"]))] if config["intensity"] else []),
    ]


def _part(part: dict[str, Any]) -> str:
    options = _options({key: value for key, value in part.items() if key not in ("name", "class_names")})
    return f"{part['name']}, {options}" if options else str(part["name"])


def _options(options: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in options.items() if value is not None)
