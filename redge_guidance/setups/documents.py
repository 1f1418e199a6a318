"""YAML as it is read and written here: plain data alone, and a place for every value.

Scalars are those of YAML 1.2: `2e-3` is a number, and `no`, `on` and `1:30` are texts. Tags, anchors and keys that are
there twice are errors. What is written is quoted so that readers of YAML 1.1 understand the same.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"^[-+]?[0-9]+$")
_FLOAT = re.compile(
    r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN)$"
)
_SCALARS = {"null": (_NULL, "~nN\0"), "bool": (_BOOL, "tTfF"), "int": (_INT, "-+0123456789")}
_SCALARS |= {"float": (_FLOAT, "-+0123456789.")}
_TAG = "tag:yaml.org,2002:"
_DIGITS = 400  # of a number

Path = tuple[Any, ...]  # keys and indices that lead to a value


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - as PyYAML has it

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            place = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "anchors are not read; write the value again", place)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> Any:
        """Line ends that YAML would fold are written as escapes."""
        style = '"' if set(data) & set("\r\x85\u2028\u2029\ufeff") else None
        return self.represent_scalar(f"{_TAG}str", data, style)


for _name, (_pattern, _first) in _SCALARS.items():
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(_TAG + _name, _pattern, ["" if sign == "\0" else sign for sign in _first])


_Dumper.add_representer(str, _Dumper.represent_str)


@dataclass(frozen=True)
class Document:
    """Values that were read.

    Attributes:
        values: the mapping.
        source: what it was read from, for errors: a file or an option.
        lines: by the path to a value, the line that it begins on, from 1; empty where there is but one line.
    """

    values: dict[str, Any]
    source: str
    lines: Mapping[Path, int]

    def place(self, *path: Any) -> str:
        """`"run.yaml, line 3"`: where a value stands, or what holds it."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.lines:
                return f"{self.source}, line {self.lines[path[:length]]}"
        return self.source


def read(text: str, source: str) -> Document:
    """A mapping with names as its keys.

    Raises:
        ValueError: no YAML, or anything but plain data, with the line.
    """
    lines: dict[Path, int] = {}
    values = read_value(text, source, lines)
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ValueError(f"{source} must hold settings, `name: value` on every line, got {_kind_of(values)}.")
    return Document(values, source, lines)


def read_value(text: str, source: str, lines: dict[Path, int] | None = None) -> Any:
    """Any plain value; `lines` gets the places. Errors as of `read`."""
    try:
        loader = _Loader(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{source} must be text in YAML: {_told(error)}") from error
    try:
        node = loader.get_single_node()
        return None if node is None else _value(node, (), source, {} if lines is None else lines)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = source if mark is None else f"{source}, line {mark.line + 1}"
        raise ValueError(f"{where}: this is no YAML: {_told(error)}") from error
    except RecursionError as error:
        raise ValueError(f"{source} is nested too deeply.") from error
    finally:
        loader.dispose()


def write(values: Mapping[str, Any]) -> str:
    """YAML that `read` reads as equal values; lists of plain values stay on a line."""
    return str(yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110))


def _value(node: Any, path: Path, source: str, lines: dict[Path, int]) -> Any:
    line = node.start_mark.line + 1
    lines.setdefault(path, line)
    kind = node.tag.removeprefix(_TAG)
    if isinstance(node, yaml.SequenceNode) and kind == "seq":
        return [_value(inner, (*path, i), source, lines) for i, inner in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode) and kind == "map":
        found: dict[str, Any] = {}
        for key_node, inner in node.value:
            place = f"{source}, line {key_node.start_mark.line + 1}"
            if not isinstance(key_node, yaml.ScalarNode):
                raise ValueError(f"{place}: a key must be a name, got {_kind_of(key_node)}.")
            if key_node.value in found:
                raise ValueError(f"{place}: `{key_node.value}` is there twice; leave one out.")
            lines[(*path, key_node.value)] = key_node.start_mark.line + 1
            found[key_node.value] = _value(inner, (*path, key_node.value), source, lines)
        return found
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, kind, f"{source}, line {line}")
    raise ValueError(f"{source}, line {line}: plain values are read only, got the tag {node.tag}.")


def _scalar(node: Any, kind: str, place: str) -> Any:
    text = str(node.value)
    if kind == "str":
        return str(text)
    if kind == "null":
        return None
    if kind == "bool" and _BOOL.match(text):
        return text.lower() == "true"
    if kind in ("int", "float") and len(text) > _DIGITS:
        raise ValueError(f"{place}: a number of {len(text)} characters is too long.")
    if kind == "int" and _INT.match(text):
        return int(text)
    if kind == "float" and _FLOAT.match(text):
        return float(re.sub(r"\.(?=inf|Inf|INF|nan|NaN)", "", text))
    raise ValueError(f"{place}: plain values are read only, got the tag {node.tag}.")


def _kind_of(value: Any) -> str:
    kinds = {list: "a list", str: "text", dict: "a mapping", bool: "true or false", type(None): "nothing"}
    kinds |= {int: "a number", float: "a number", yaml.SequenceNode: "a list", yaml.MappingNode: "a mapping"}
    return kinds.get(type(value), type(value).__name__)


def _told(error: Exception) -> str:
    return " ".join(str(getattr(error, "problem", None) or getattr(error, "reason", None) or error).split()) + "."
