"""What a label means in every container: by its type, a number is a position and a text a name."""

import json
import math
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.dataset.seen_labels import LabelCounter
from pipeline.errors import ConfigError
from pipeline.sources import open_source
from pipeline.sources.readers.class_names import ClassNames, NotALabel, Untyped, read_class_names
from pipeline.sources.readers.declared import Declared
from pipeline.sources.readers.text import decode_text, shown
from support.corpus import encode, quadrants, write_tar

JPEG = encode(quadrants())
# As sorted as text, so that no name is its own number but "0" and "1".
DIGITS = ["0", "1", "10", "11", "2", "3"]
WORDS = ["bird", "cat", "dog", "eel"]

Read = Callable[..., list[str | None]]


def classes_of(kind: str, **params: Any) -> list[str | None]:
    source = open_source(kind, params)
    return [s.class_name for partition in source.partitions() for s in source.read(partition)]


def from_member(field: str, encode_label: Callable[[Any], bytes]) -> Callable[..., Any]:
    def read(folder: Path, label: Any, **params: Any) -> list[str | None]:
        members = [("a.jpg", JPEG), (f"a.{field.partition('.')[0]}", encode_label(label))]
        path = write_tar(folder / "a.tar", members)
        return classes_of("webdataset", urls=str(path), class_field=field, **params)

    return read


def from_parquet(folder: Path, label: Any, **params: Any) -> list[str | None]:
    pq.write_table(pa.table({"image": [JPEG], "label": [label]}), folder / "a.parquet")
    return classes_of("parquet", urls=str(folder / "a.parquet"), **params)


def from_saved(folder: Path, label: Any, **params: Any) -> list[str | None]:
    rows = {"image": [{"bytes": JPEG, "path": None}], "label": [label]}
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    table.save_to_disk(str(folder / "set"))
    return classes_of("huggingface", path=str(folder / "set"), **params)


def from_jsonl(folder: Path, label: Any, **params: Any) -> list[str | None]:
    (folder / "set").mkdir()
    (folder / "set" / "a.jpg").write_bytes(JPEG)
    row = json.dumps({"file_name": "a.jpg", "label": label})
    (folder / "set" / "metadata.jsonl").write_text(row)
    return classes_of("huggingface", path=str(folder / "set"), **params)


TYPED = {
    "json_value": from_member("json.label", lambda label: json.dumps({"label": label}).encode()),
    "json": from_member("json", lambda label: json.dumps(label).encode()),
    "parquet": from_parquet,
    "saved": from_saved,
    "jsonl": from_jsonl,
}
UNTYPED = {
    "cls": from_member("cls", lambda label: str(label).encode()),
    "txt": from_member("txt", lambda label: f"\ufeff{label}\r\n".encode()),
}


@pytest.mark.parametrize("container", [*TYPED, *UNTYPED])
@pytest.mark.parametrize("label", [2, 2.0])
def test_number_is_a_position_in_every_container(
    tmp_path: Path, container: str, label: float
) -> None:
    read = {**TYPED, **UNTYPED}[container]
    assert read(tmp_path, label, label_names=WORDS) == ["dog"]


@pytest.mark.parametrize("container", TYPED)
def test_number_is_a_position_also_where_names_are_digits(tmp_path: Path, container: str) -> None:
    assert TYPED[container](tmp_path, 2, label_names=DIGITS) == ["10"]


@pytest.mark.parametrize("container", [*TYPED, *UNTYPED])
def test_text_of_digits_is_refused_where_names_are_digits(tmp_path: Path, container: str) -> None:
    read = {**TYPED, **UNTYPED}[container]
    message = r"class '2' is a text.*name, number 4, or class number 2, named '10'.*text_labels"
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, "2", label_names=DIGITS)


@pytest.mark.parametrize("container", [*TYPED, *UNTYPED])
@pytest.mark.parametrize(("text_labels", "expected"), [("names", "2"), ("numbers", "10")])
def test_the_source_says_what_a_text_of_digits_is(
    tmp_path: Path, container: str, text_labels: str, expected: str
) -> None:
    read = {**TYPED, **UNTYPED}[container]
    assert read(tmp_path, "2", label_names=DIGITS, text_labels=text_labels) == [expected]


@pytest.mark.parametrize("container", TYPED)
def test_text_is_no_number_where_there_are_types(tmp_path: Path, container: str) -> None:
    with pytest.raises(ConfigError, match=r"class '2' is none of the 4.*text_labels: numbers"):
        TYPED[container](tmp_path, "2", label_names=WORDS)


@pytest.mark.parametrize("container", [*TYPED, *UNTYPED])
def test_name_is_a_name_in_every_container(tmp_path: Path, container: str) -> None:
    read = {**TYPED, **UNTYPED}[container]
    assert read(tmp_path, "cat", label_names=WORDS) == ["cat"]


@pytest.mark.parametrize("container", [*TYPED, *UNTYPED])
def test_whole_float_is_its_number_without_names_too(tmp_path: Path, container: str) -> None:
    read = {**TYPED, **UNTYPED}[container]
    assert read(tmp_path, 3.0) == ["3"]


@pytest.mark.parametrize("container", TYPED)
def test_list_is_several_classes(tmp_path: Path, container: str) -> None:
    assert TYPED[container](tmp_path, [2, 0], label_names=WORDS) == ["dog, bird"]


@pytest.mark.parametrize("container", TYPED)
@pytest.mark.parametrize("label", [[0, 0, 1], [0.0, 1.0, 0.0], [True, False]])
def test_vector_with_a_one_for_each_class_is_no_list_of_classes(
    tmp_path: Path, container: str, label: list[float]
) -> None:
    with pytest.raises(ConfigError, match="has a 0 or 1 for each class"):
        TYPED[container](tmp_path, label, label_names=WORDS, target_labels=["cat"])


@pytest.mark.parametrize("container", UNTYPED)
def test_several_lines_are_no_class(tmp_path: Path, container: str) -> None:
    with pytest.raises(ConfigError, match="several lines"):
        UNTYPED[container](tmp_path, "cat\ndog", target_labels=["cat"])


@pytest.mark.parametrize("container", UNTYPED)
def test_more_digits_than_a_number_has_are_a_name(tmp_path: Path, container: str) -> None:
    assert UNTYPED[container](tmp_path, "9" * 5000) == ["9" * 5000]


@pytest.mark.parametrize("container", TYPED)
def test_what_is_no_label_is_refused_if_the_target_depends_on_it(
    tmp_path: Path, container: str
) -> None:
    with pytest.raises(ConfigError, match=r"a label is a number, a text or a list.*not a struct"):
        TYPED[container](tmp_path, {"name": "cat"}, target_labels=["cat"])


def test_value_deep_in_the_json_is_named_by_its_path(tmp_path: Path) -> None:
    described = json.dumps({"label": {"name": "cat"}, "a.b": 3}).encode()
    path = str(write_tar(tmp_path / "a.tar", [("a.jpg", JPEG), ("a.json", described)]))
    for field, expected in (("json.label.name", "cat"), ("json.a.b", "3"), ("json.no.name", None)):
        assert classes_of("webdataset", urls=path, class_field=field) == [expected]


@pytest.mark.parametrize("label", [True, 1, 1.0, Decimal(1), Untyped("1"), Untyped("1.0")])
def test_spellings_of_a_number(label: object) -> None:
    assert ClassNames(names=tuple(WORDS)).name_of(label) == "cat"


@pytest.mark.parametrize("label", [None, "", " \r\n", math.nan, -1, -1.0, Untyped("-1")])
def test_no_class(label: object) -> None:
    for names in ((), WORDS, DIGITS):
        assert ClassNames(names=tuple(names)).name_of(label) is None


@pytest.mark.parametrize("label", [0.5, math.inf, {"name": "cat"}, [1], object()])
def test_no_label(label: object) -> None:
    with pytest.raises(NotALabel):
        ClassNames().name_of(label)


def test_digits_that_are_their_own_numbers_are_certain() -> None:
    classes = ClassNames(names=tuple(str(n) for n in range(10)))
    assert [classes.name_of(label) for label in ("7", Untyped("7"), 7, 7.0)] == ["7"] * 4
    with pytest.raises(ConfigError, match="a name that no class has, or a number too large"):
        classes.name_of("10")


@pytest.mark.parametrize(
    ("names", "label", "expected"),
    [(WORDS, 2, "dog"), (WORDS, "dog", "dog"), (WORDS, "2", "dog"), (DIGITS, 2, "10"),
     (DIGITS, "2", "2"), ((), 2, "2"), ((), "02", "02")],
)  # fmt: skip
def test_target_is_named_like_a_label(names: list[str], label: int | str, expected: str) -> None:
    assert ClassNames(names=tuple(names)).name_of_target(label) == expected


def test_number_of_a_target_among_digits_is_told(caplog: pytest.LogCaptureFixture) -> None:
    ClassNames(names=tuple(DIGITS)).name_of_target(2)
    assert "2 is class number 2, named '10'; for a class of the name \"2\"" in caplog.text


@pytest.mark.parametrize("label", [4, -1, "kat", "4", "007"])
def test_target_that_is_no_class_is_refused(label: int | str) -> None:
    with pytest.raises(ConfigError, match="is none of the 4 classes: bird, cat, dog, eel"):
        ClassNames(names=tuple(WORDS)).name_of_target(label)


@pytest.mark.parametrize("policy", ["exclude", "only"])
def test_target_among_digits_is_the_class_of_that_name(tmp_path: Path, policy: str) -> None:
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=DIGITS)}
    )
    rows = {"image": [{"bytes": JPEG, "path": None}] * 3, "label": [4, 2, 4]}
    table = datasets.Dataset.from_dict(rows, features=features)
    table.save_to_disk(str(tmp_path / "set"))
    table.to_parquet(str(tmp_path / "a.parquet"))
    params = {"target_labels": ["2"], "target_policy": policy}
    expected = ["10"] if policy == "exclude" else ["2", "2"]
    assert classes_of("parquet", urls=str(tmp_path / "a.parquet"), **params) == expected
    assert classes_of("huggingface", path=str(tmp_path / "set"), **params) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("cat".encode("utf-16"), "UTF-16"),
        ("cat".encode("utf-16-le"), "UTF-16 without a byte order mark"),
        ("cat".encode("utf-32"), "UTF-32"),
        ("chät".encode("latin-1"), r"no UTF-8, by byte 0xe4 at 2; perhaps Latin-1"),
    ],
)
@pytest.mark.parametrize("field", ["cls", "json.label"])
def test_other_encoding_is_refused_by_name(
    tmp_path: Path, content: bytes, message: str, field: str
) -> None:
    member = f"a.{field.partition('.')[0]}"
    path = write_tar(tmp_path / "a.tar", [("a.jpg", JPEG), (member, content)])
    with pytest.raises(ConfigError, match=rf"a\.tar#{member}: {message}.*UTF-8"):
        classes_of("webdataset", urls=str(path), class_field=field)


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_names_in_a_file_may_have_a_mark_and_any_line_end(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "names.txt"
    names = ["cat", "dog\u2028two", "eel"]
    path.write_bytes(("\ufeff" + f" {ending}".join([*names, ""])).encode())
    assert read_class_names(str(path)) == tuple(names)
    path.write_text("cat\n\neel\n")
    with pytest.raises(ConfigError, match=r"line 2 is empty, and a name's line is its number"):
        read_class_names(str(path))


def test_text_is_shown_so_that_nothing_hides() -> None:
    assert decode_text(b"\xef\xbb\xbfcat", "x") == "cat"
    assert shown("a cat") == '"a cat"'
    assert shown("\ufeffc\u200bat\xa0\t") == '"\\ufeffc\\u200bat\\xa0\\t"'


@pytest.mark.parametrize("names", [[True, False], ["a", False]])
def test_names_that_yaml_took_for_yes_and_no_are_refused(names: list[Any]) -> None:
    with pytest.raises(ConfigError, match="write it in quotes"):
        open_source("parquet", {"urls": "a.parquet", "label_names": names})


def test_class_that_is_not_known_is_named_with_its_place(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("a.jpg", JPEG), ("a.cls", b"Cat")])
    with pytest.raises(ConfigError, match=r"a\.tar: cls: class 'Cat' is none of the 4 known"):
        classes_of("webdataset", urls=str(path), class_field="cls", label_names=WORDS)


def test_captions_are_counted_in_bounded_memory() -> None:
    """Each is a class of its own, and so may be each list of classes that has the target."""
    counter = LabelCounter()
    for number in range(5000):
        counter.add(f"caption {number} " + "x" * 1000, is_target=False)
        counter.add(f"cat, class {number % 50}, number {number}", is_target=True)
    counter.add("late, cat", is_target=True)
    seen = counter.seen()
    assert (len(seen.others), seen.num_more, seen.num_samples) == (2000, 3000, 10_001)
    assert max(map(len, seen.others)) == 120
    Declared(targets=["cat", "class 49", "late"]).check(seen)
    with pytest.raises(ConfigError, match='no sample of class "class" among 10,001'):
        Declared(targets=["class"]).check(seen)
