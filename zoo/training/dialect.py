"""The YAML of recipes: safe, and with numbers as everyone means them."""

import re
from typing import Any

import yaml

from zoo.errors import UserError


class _Loader(yaml.SafeLoader):
    """YAML's safe dialect, with 1e-4 a number, as everyone means it (YAML 1.1 asks for a point: 1.0e-4)."""


class _Dumper(yaml.SafeDumper):
    """YAML's safe dialect, with tuples as lists, and quotes about a text that _Loader would take for a number."""


for _dialect in (_Loader, _Dumper):
    _dialect.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )
_Dumper.add_representer(tuple, yaml.SafeDumper.represent_list)


def parse(text: str, what: str) -> Any:
    """What a YAML text holds; `what` it is, for the UserError where it is not YAML."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{what} is not YAML{where}: {getattr(error, 'problem', None) or error}.") from None


def dump(content: dict[str, Any]) -> str:
    """The content as YAML that `parse` reads back to an equal one, in its own order."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
