"""Configs are YAML 1.2, whose words are words, and no text of a stranger costs much."""

import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config.loading import load_config
from pipeline.config.yaml_text import dump, parse
from pipeline.errors import ConfigError

CONFIG = """target: {name: cat}
positives: [{name: p, kind: squares}]
output: {path: out}
"""


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("off", "off"), ("no", "no"), ("On", "On"), ("y", "y"), ("12:30", "12:30"),
        ("1_000", "1_000"), ("2001-01-01", "2001-01-01"), ("=", "="), ("nan", "nan"),
        ("1e3", 1000.0), ("0o17", 15), ("017", 17), ("0x1F", 31), (".5", 0.5), ("1.", 1.0),
        ("-3", -3), ("true", True), ("FALSE", False), ("~", None), ("", None), ("'1'", "1"),
        ("!!str 1", "1"),
    ],
)  # fmt: skip
def test_word_is_read_by_the_core_schema(word: str, value: Any) -> None:
    read = parse(f"a: {word}", "text")["a"]
    assert (read, type(read)) == (value, type(value))


def test_what_is_written_is_read_again_also_by_readers_of_1_1() -> None:
    # fmt: off
    words = [
        "off", "no", "y", "1e3", "0o17", "0777", "12:30", "1_000", "~", "<<", ".nan", "2001-01-01",
        "=", "null", "0x1f", "0b1", "\udce9",
    ]
    # fmt: on
    data = {"words": ["", *words], "off": 1, "1e3": 2, "numbers": [1e-5, 3, None, True]}
    assert parse(dump(data), "text") == data
    assert yaml.safe_load(dump(data)) == data


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", r"line 2, column 1: the key 'a' is there already"),
        ("b: {x: 1,\n  x: 1}", r"line 2, column 3: the key 'x'"),
        ("a: 1\nb: .nan", r"line 2, column 4: \.nan is not a finite number"),
        ("a: -.inf", r"line 1, column 4: -\.inf is not a finite"),
        ("a: 1e999", "1e999 is not a finite number"),
        ("a: " + "9" * 5000, "the number is too long"),
        ("a: !!python/object/apply:os.system [ls]", "line 1, column 4: .*python/object"),
        ("a: !!int x", "'x' is no int"),
        ("a: !!bool maybe", "'maybe' is no bool"),
        ("a:\n\t- b", r"line 2, column 1: .*'\\t'"),
        ("a: b\x00", r"line 1: the character '\\x00' is not allowed"),
        ("a: 1\n---\nb: 2", "line 2, .*single document"),
        ("? [a]\n: 1", "a key is one word"),
        ("a: &x [*x]", r"line 1, column 8: \*x is inside of &x"),
        ("a: *b", "undefined alias 'b'"),
        ("[" * 100_000, "over 64 levels deep"),
        ("- " * 100_000, "over 64 levels deep"),
    ],
)
def test_text_that_is_refused_is_named_by_its_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^file\.yaml: not YAML: .*{message}"):
        parse(text, "file.yaml")


def nested_aliases(form: str) -> str:
    lines = ["l0: &l0 {k: v}"]
    lines += [f"l{n}: &l{n} {form % ', '.join([f'*l{n - 1}'] * 10)}" for n in range(1, 12)]
    return "\n".join(lines)


@pytest.mark.parametrize("form", ["[%s]", "{<<: [%s]}"])
def test_aliases_of_aliases_cost_no_memory(form: str) -> None:
    tracemalloc.start()
    with pytest.raises(ConfigError, match="aliases of aliases stand for too much"):
        parse(nested_aliases(form), "file.yaml")
    assert tracemalloc.get_traced_memory()[1] < 30e6
    tracemalloc.stop()


def test_alias_and_merge_keys_are_kept() -> None:
    text = "x: {deep: {b: &b {<<: &a {q: 1}, q: 2}}}\nc: {<<: *b, z: 1}\nd: [*a, *a]"
    assert parse(text, "text") == {
        "x": {"deep": {"b": {"q": 2}}}, "c": {"q": 2, "z": 1}, "d": [{"q": 1}] * 2
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CONFIG.encode("utf-16"), "it is UTF-16, at byte 0; save it as UTF-8"),
        (CONFIG.encode("utf-32"), "it is UTF-32, at byte 0"),
        (CONFIG.encode() + "# für".encode("latin-1"), r"byte 0xfc at byte 81, line 4; save it"),
    ],
)
def test_other_encoding_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"c\.yaml: .*{message}"):
        load_config(tmp_path / "c.yaml")


def test_byte_order_mark_of_utf_8_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(CONFIG.encode("utf-8-sig"))
    assert load_config(tmp_path / "c.yaml").target_names == ("cat",)


def test_what_is_no_file_of_text_is_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for path, message in (
        (tmp_path, "is a folder, no config: `infineg init"), (tmp_path / "pipe", "got NoneType"),
        (tmp_path / "loop", "Too many levels"), ("/dev/zero", "over 16,777,216 bytes"),
        (tmp_path / ("n" * 300), "File name too long"), ("/proc/self/mem", "Input/output error"),
        ("a\0b", "null byte"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            load_config(path)
