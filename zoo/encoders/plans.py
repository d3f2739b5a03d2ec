"""What every net of timm takes and gives, without asking it: from a table in the package, else from the user's cache.

The table has the facts of all architectures of one version of timm, each as timm builds it by default, one to a line;
`python -m benchmarks.encoders` writes it. What it does not have is asked once and kept in the cache folder. Neither is
ever needed: where the table is of another version, or the cache cannot be written, the net is asked again.
"""

import gzip
import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from zoo.encoders import probe
from zoo.encoders.probe import Facts
from zoo.files import aside, cache_folder

FORMAT = 1  # raised whenever probing finds something else, or facts are written otherwise
TABLE = "plans.jsonl.gz"


def find(name: str, arguments: Mapping[str, Any]) -> Facts:
    """The facts of timm's `name` (a tag may follow after a dot) built with these arguments.

    Raises UserError for an unknown argument, and for a net that runs at none of the sizes tried.
    """
    if not timms_own(name):  # somebody's own net may change while its name stays
        return probe.find(name, arguments)
    found = shipped(name, arguments) or cached(name, arguments)
    if not found:
        found = probe.find(name, arguments)
        keep(name, arguments, found)
    return found


def shipped(name: str, arguments: Mapping[str, Any]) -> Facts | None:
    """What the table in the package says, or None where it is of another version of timm or has no such entry."""
    import timm

    architecture, _, tag = name.partition(".")
    text = table()
    if not text.startswith(_header()):
        return None
    start = text.find(f'\n{{"name": {json.dumps(architecture)},')
    if start < 0:
        return None
    entry = json.loads(text[start + 1 : text.index("\n", start + 1)])
    del entry["name"]
    facts = parsed(entry)
    if arguments and arguments != facts.arguments:
        return None
    weights = timm.get_pretrained_cfg(name) if tag and facts.size else None
    if weights and facts.size != probe.own_size(weights.input_size, arguments):
        return None  # the net is built for the size of its weights, and these are for another than the default
    return facts


@cache
def table() -> str:
    """The table as it stands in the package: a header, then one net a line; empty where there is none."""
    try:
        return gzip.decompress((files("zoo.encoders") / TABLE).read_bytes()).decode()
    except FileNotFoundError:
        return ""


def write_table(path: Path, entries: Iterable[tuple[str, Facts]]) -> None:
    """The table of these nets, the same bytes for the same entries."""
    lines = [json.dumps({"name": name} | asdict(facts)) + "\n" for name, facts in entries]
    with aside(path) as temporary:
        temporary.write_bytes(gzip.compress("".join([_header(), *sorted(lines)]).encode(), mtime=0))


def cached(name: str, arguments: Mapping[str, Any]) -> Facts | None:
    """What an earlier process found; None where there is nothing, or nothing that can be read and is meant for this."""
    key = _key(name, arguments)
    try:
        entry = json.loads(_place(key).read_text(encoding="utf-8"))
        return parsed(entry["facts"]) if entry["key"] == key else None
    except (OSError, RuntimeError, ValueError, TypeError, KeyError):
        return None


def keep(name: str, arguments: Mapping[str, Any], facts: Facts) -> None:
    """Write to the cache what was found; where that cannot be, go on without."""
    key = _key(name, arguments)
    with suppress(OSError, RuntimeError):  # a folder that may not be written, no home
        place = _place(key)
        place.parent.mkdir(parents=True, exist_ok=True)
        with aside(place) as temporary:
            temporary.write_text(json.dumps({"key": key, "facts": asdict(facts)}, indent=1) + "\n", encoding="utf-8")


def parsed(entry: dict[str, Any]) -> Facts:
    """Facts from JSON, where tuples have become lists. Raises TypeError for other fields."""
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    values["unused"] = tuple((place, tuple(feeds), tuple(keys)) for place, feeds, keys in entry["unused"])
    return Facts(**values)


def timms_own(name: str) -> bool:
    """Whether the architecture is one of timm's files, not registered with timm by somebody else."""
    import timm

    build = timm.model_entrypoint(name.partition(".")[0])
    return build.__module__.startswith("timm.models.")


def _header() -> str:
    import timm

    return json.dumps({"format": FORMAT, "timm": timm.__version__}) + "\n"


def _key(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    import timm

    return {"format": FORMAT, "timm": timm.__version__, "name": name, "arguments": dict(arguments)}


def _place(key: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "plans" / f"{key['name']}-{digest[:16]}.json"
