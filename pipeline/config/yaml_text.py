"""YAML 1.2 as configs use it: the core schema (yaml.org/spec/1.2.2, section 10.3), and no more.

In YAML 1.1, which PyYAML reads by default, `off`, `no` and `y` are booleans and `12:30` is a
number. Here they are words. Merge keys (`<<`), which 1.2 leaves out, are kept.
"""

import math
import os
import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from pipeline import storage
from pipeline.errors import ConfigError

_MAX_BYTES = 16 * 2**20
_MAX_DEPTH = 64
# Nodes that aliases may add: a few lines of aliases of aliases name as many as one likes.
_MAX_ALIASED = 100_000

_TAG = "tag:yaml.org,2002:"
# By kind: the pattern of plain words, and the characters that they may begin with.
_PLAIN = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "merge": (r"<<", "<"),
}
# Byte order marks of the other encodings of Unicode; the longer ones first.
_MARKS = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a file in UTF-8, with or without a byte order mark; raises ConfigError."""
    name = storage.escape(os.fspath(path))
    try:
        # Without waiting for somebody to write into a named pipe.
        with open(path, "rb", opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK)) as file:
            os.set_blocking(file.fileno(), True)
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror or error}; a readable file is wanted") from None
    except ValueError as error:  # a zero byte in the name
        raise ConfigError(f"{name!r}: {error}") from None
    if len(content) > _MAX_BYTES:
        raise ConfigError(f"{name}: over {_MAX_BYTES:,} bytes, which no config has")
    return decode(content, name)


def decode(content: bytes, name: str) -> str:
    """The text of UTF-8, with or without a byte order mark; raises ConfigError."""
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            raise ConfigError(f"{name}: it is {encoding}, at byte 0; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{name}: not UTF-8: byte 0x{content[error.start]:02x} at byte {error.start:,}, line "
            f"{line}; save it as UTF-8"
        ) from None


def parse(text: str, where: str) -> Any:
    """The one document of a text. Raises ConfigError that names the line."""
    try:
        loader = _Loader(text)
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        reason = " ".join(filter(None, (error.context, error.problem)))
        raise ConfigError(f"{where}: not YAML: {place}{reason}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            f"{where}: not YAML: line {line}: the character {chr(error.character)!r} is not allowed"
        ) from None


def dump(data: Any) -> str:
    """YAML that both `parse` and readers of YAML 1.1 take for the same data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """Refuses double keys, aliases without end, numbers that are none, tags of other schemas."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML is extended this way
    yaml_constructors = {  # noqa: RUF012
        tag: yaml.SafeLoader.yaml_constructors[tag]
        for tag in (f"{_TAG}str", f"{_TAG}seq", f"{_TAG}map", None)
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._level = 0
        self._sizes: dict[yaml.Node, tuple[int, int]] = {}  # (nodes below it, depth), if finished
        self._num_own = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        mark = event.start_mark
        self._level += 1
        _refuse(self._level > _MAX_DEPTH, f"over {_MAX_DEPTH} levels deep", mark)
        node = super().compose_node(parent, index)
        self._level -= 1
        assert node is not None
        if isinstance(event, yaml.AliasEvent):
            _refuse(node not in self._sizes, f"*{event.anchor} is inside of &{event.anchor}", mark)
            return node
        self._num_own += 1
        children = _children(node)
        size = 1 + sum(self._sizes[child][0] for child in children)
        depth = 1 + max((self._sizes[child][1] for child in children), default=0)
        _refuse(
            size > self._num_own + _MAX_ALIASED or depth > _MAX_DEPTH,
            "its aliases of aliases stand for too much",
            mark,
        )
        self._sizes[node] = (size, depth)
        if isinstance(node, yaml.MappingNode):
            self._refuse_double_keys(node)
        return node

    def _refuse_double_keys(self, node: yaml.MappingNode) -> None:
        seen = set()
        for key_node, _ in node.value:
            mark = key_node.start_mark
            _refuse(not isinstance(key_node, yaml.ScalarNode), "a key is one word", mark)
            if key_node.tag == f"{_TAG}merge":
                continue
            key = self.construct_object(key_node)
            _refuse(key in seen, f"the key {key!r} is there already; remove one", mark)
            seen.add(key)


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _refuse(is_wrong: bool, problem: str, mark: Any) -> None:
    if is_wrong:
        raise ConstructorError(None, None, problem, mark)


def _scalar(loader: _Loader, node: yaml.ScalarNode) -> Any:
    """A word that is no text: also with a tag, such as `!!int`, it has to look like its kind."""
    kind = node.tag.removeprefix(_TAG)
    text = loader.construct_scalar(node)
    is_one = re.fullmatch(_PLAIN[kind][0], text) is not None
    _refuse(not is_one, f"{text!r} is no {kind}", node.start_mark)
    if kind == "merge":  # as a key it was merged
        return text
    if kind in ("null", "bool"):
        return None if kind == "null" else text.lower() == "true"
    if kind == "int":
        # int() refuses longer ones.
        _refuse(len(text) > 1000, "the number is too long", node.start_mark)
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    number = math.nan if text.endswith(("nan", "NaN", "NAN")) else _float(text)
    _refuse(not math.isfinite(number), f"{text} is not a finite number", node.start_mark)
    return number


def _float(text: str) -> float:
    return math.inf if text.lower().endswith(".inf") else float(text)


for _kind, (_pattern, _first) in _PLAIN.items():
    _Loader.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(rf"(?:{_pattern})\Z"), list(_first))
    _Loader.add_constructor(f"{_TAG}{_kind}", _scalar)
# PyYAML looks up an empty word under "".
_Loader.add_implicit_resolver(f"{_TAG}null", re.compile(r"\Z"), [""])


class _Dumper(yaml.SafeDumper):
    """Quotes what 1.1 (PyYAML's own patterns) or 1.2 would take for something else than text."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


for _kind, (_pattern, _first) in _PLAIN.items():
    _Dumper.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(rf"(?:{_pattern})\Z"), list(_first))
