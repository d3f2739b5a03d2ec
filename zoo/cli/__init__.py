"""The command line: train, test, compare, predict, export, data, list, show, copy, doctor. Each imports late."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import zoo
from zoo.cli import catalogue, compare, data, export, predict, train
from zoo.cli import doctor as health
from zoo.errors import Terminated, UserError, nearest

EXAMPLES = """\
examples:
  zoo train segmentation/demo
  zoo train segmentation/unet_folder --data.root photos/ --model.encoder convnext_tiny
  zoo train segmentation/unet_folder --help       every key, what it does and its value
  zoo test runs/segmentation/unet_folder/1
  zoo compare runs/segmentation/unet_folder/1 runs/segmentation/unet_folder/2
  zoo predict runs/segmentation/unet_folder/1 photo.jpg more_photos/ -o predictions/
  zoo export runs/segmentation/unet_folder/1 -o model.onnx
"""


class Parser(argparse.ArgumentParser):
    """argparse, with a mistake as a UserError."""

    def __init__(self, **options: Any):
        super().__init__(**options, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.hints: dict[str, str] = {}  # what to say of an argument that is missing

    def error(self, message: str) -> NoReturn:
        for word, hint in self.hints.items():
            message = message.replace(word, f"{word} ({hint})")
        raise UserError(f"{message[0].upper()}{message[1:]}; `{self.prog} --help` shows how.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code.

    0; 1 where some images failed or have problems; 2 for a user's mistake; 130 for Ctrl-C; 143 for SIGTERM while it
    trains or tests.
    """
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        print(f"zoo: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that may not be written: the system's word on it
        if isinstance(error, BrokenPipeError):  # `zoo list encoders | head`: nobody reads on, and that's no error
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        print(f"zoo: {error.filename or 'A file'} cannot be read or written: {error.strerror}.", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's; torch may not be loaded
            raise
        print("zoo: The device's memory is full; use --device cpu, smaller images or a smaller batch.", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print("zoo: stopped.", file=sys.stderr)
        return 143 if isinstance(error, Terminated) else 130


def _run(argv: list[str]) -> int:
    parser, commands = _parsers()
    if not argv:
        parser.print_help()
        return 0
    if not argv[0].startswith("-") and argv[0] not in commands:
        raise UserError(
            f"There is no command {argv[0]!r}{nearest(argv[0], commands) or '.'} `zoo --help` shows them all."
        )
    if argv[0] == "train":  # its flags are the recipe's keys, which argparse doesn't know
        return train.train(commands["train"], argv[1:])
    args, rest = parser.parse_known_args(argv)
    if argv[0] == "test":
        args.overrides = rest
    elif rest:
        command = commands.get(argv[0], parser)
        flags = re.findall(r"--\w+", command.format_usage())
        near = nearest(rest[0], flags) if rest[0].startswith("-") else ""
        raise UserError(
            f"{command.prog!r} takes no {rest[0]!r}{near or '.'} `{command.prog} --help` shows what it takes."
        )
    result: int = args.run(args)
    return result


def _parsers() -> tuple[Parser, dict[str, Parser]]:
    parser = Parser(prog="zoo", description=zoo.__doc__.split(". ")[0] if zoo.__doc__ else None, epilog=EXAMPLES)
    parser.add_argument("--version", action="version", version=f"visionzoo {zoo.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", title="commands", required=True, parser_class=Parser)
    made = {
        "train": train.add_train(commands),
        "test": train.add_test(commands),
        "compare": compare.add(commands),
        "predict": predict.add(commands),
        "export": export.add(commands),
        "data": data.add(commands, Parser),
        "list": catalogue.add_list(commands),
        "show": catalogue.add_show(commands),
        "copy": catalogue.add_copy(commands),
        "doctor": health.add(commands),
    }
    return parser, made
