"""Whatever a file, a disk or a name is like: one message that names it, and no traceback."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.build.driver
from pipeline.storage.outside import as_failure
from support.builds import build_inline, config_of, copy_dataset, open_inline, squares
from support.inputs import things
from support.launching import write_config
from support.processes import call_infineg, run_infineg

LONG = "n" * 300
BAD_NAME = os.fsdecode(b"caf\xe9")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("boundary") / "data"
    build_inline(config_of(root, [squares(num_pictures=40)]))
    return root


@pytest.fixture
def root(data: Path, tmp_path: Path) -> Path:
    return copy_dataset(data, tmp_path / "data")


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that has to fail, with one message; returns it."""

    def run(*arguments: object) -> str:
        code, _, errors = call_infineg(capsys, *arguments)
        lines = errors.splitlines()
        assert code in (1, 2), errors
        messages = [line for line in lines if line.startswith("infineg: ")]
        assert len(messages) == 1, errors
        assert "Traceback" not in errors
        return errors[errors.index("infineg: ") :]

    return run


def odd_paths(tmp_path: Path) -> dict[str, Path]:
    """By what they are; none is a file that can be read."""
    paths = {name: tmp_path / name for name in ("folder", "pipe", "loop", LONG, "a\0b")}
    paths["folder"].mkdir()
    os.mkfifo(paths["pipe"])
    paths["loop"].symlink_to("loop")
    return {
        **paths,
        "device": Path("/dev/full"),  # it never ends
        "memory": Path("/proc/self/mem"),
        "in a file": Path("/proc/self/mem/below"),
    }


ODD = ["folder", "pipe", "loop", LONG, "a\0b", "device", "memory", "in a file"]


@pytest.mark.parametrize("kind", ODD, ids=[name[:9].replace("\0", "0") for name in ODD])
def test_odd_path_is_named(
    kind: str, tmp_path: Path, root: Path, fails: Callable[..., str]
) -> None:
    path = odd_paths(tmp_path)[kind]
    commands: list[tuple[object, ...]] = [
        ("status", path),
        ("verify", path),
        ("review", path),
        ("takedown", path, "--author", "x"),
        ("review", root, "--verdicts", path),
        ("check", path, "--source", "x"),
        ("launch", "build", path, "--on", "slurm"),
        ("evaluate", path),
        ("predict", path, root),
    ]
    if kind not in ("folder", "pipe", "device", "a\0b"):
        config = write_config(tmp_path / "c.yaml")
        commands.append(("build", config, "--set", f"output.path={path}"))
    for command in commands:
        message = fails(*command)
        assert repr(str(path))[1:-1] in message.replace("\0", r"\x00"), command


@pytest.mark.parametrize(
    "pattern",
    ["dataset.json", "generations/*.json", "_info.json", "ledger/*", "shards/*/*.parquet",
     "shards/*/*.tar"],
)  # fmt: skip
@pytest.mark.parametrize(
    "content", [b"garbage\xff", b"", b"[" * 200_000, b'{"a": NaN}', b'["x"]', None]
)
def test_broken_file_of_a_data_set_is_named(
    pattern: str, content: bytes | None, root: Path, fails: Callable[..., str]
) -> None:
    for path in root.glob(pattern):
        path.unlink()
        path.mkdir() if content is None else path.write_bytes(content)
    message = fails("verify", root)
    assert str(root) in message
    if not (pattern == "generations/*.json" and content is None):
        assert any(path.name in message for path in root.glob(pattern)) or "problems" in message


@pytest.mark.parametrize("content", [b"garbage\xff", b"key,verdict\n\xe9,drop", b"a" * 200_000])
def test_broken_list_of_verdicts_is_named(
    content: bytes, root: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    (tmp_path / "verdicts.csv").write_bytes(content)
    assert "verdicts.csv" in fails("review", root, "--verdicts", tmp_path / "verdicts.csv")


def write_sources(folder: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """Sources with nothing in them that can be read: kind and params."""
    for suffix in ("parquet", "tar", "json"):
        (folder / f"garbage.{suffix}").write_bytes(b"garbage\xff\xfe\0" * 50)
        (folder / f"deep.{suffix}").write_bytes(b"[" * 200_000)
        os.mkfifo(folder / f"pipe.{suffix}")
        (folder / f"loop.{suffix}").symlink_to(f"loop.{suffix}")
    pq.write_table(pa.table({"image": things(3)}), folder / "whole.parquet")
    whole = (folder / "whole.parquet").read_bytes()
    (folder / "cut.parquet").write_bytes(whole[:-9])
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".parquet" and path.stem != "whole":
            found[path.name] = ("parquet", {"urls": str(path)})
        elif path.suffix != ".parquet":
            found[path.name] = ("webdataset", {"urls": str(path)})
    for name in ("pipe.tar", "loop.tar", "nowhere"):
        found[f"folder {name}"] = ("image_folder", {"path": str(folder / name)})
    found["no bucket"] = ("image_folder", {"path": "s3://"})
    found["no address"] = ("webdataset", {"urls": "http://[::1/a.tar"})
    return found


def test_source_that_cannot_be_read_is_named(tmp_path: Path, fails: Callable[..., str]) -> None:
    (tmp_path / "in").mkdir()
    for name, (kind, params) in write_sources(tmp_path / "in").items():
        entry = {"name": "odd", "kind": kind, "params": params}
        config = write_config(tmp_path / "c.yaml", sources=[entry])
        message = fails("check", config, "--source", "odd")
        place = next(iter(params.values()))
        assert place in message, name


def test_names_that_are_no_utf_8_are_read_kept_and_printed(tmp_path: Path) -> None:
    folder = tmp_path / BAD_NAME
    folder.mkdir()
    for number, image in enumerate(things(12)):
        (folder / f"{BAD_NAME}{number}.jpg").write_bytes(image)
    os.symlink(".", folder / "again")
    entry = {"name": "things", "kind": "image_folder", "params": {"path": "${THINGS}"}}
    config = write_config(
        tmp_path / "c.yaml", sources=[entry], output={"path": str(tmp_path / "data")}
    )
    for encoding in ("utf-8", "ascii"):
        code, text = run_infineg(
            "check", config, "--source", "things", "--number", 3,
            log=tmp_path / f"log-{encoding}", THINGS=BAD_NAME, cwd=tmp_path,
            PYTHONIOENCODING=encoding,
            PYTHONPATH=str(Path(__file__).parents[3]),  # a process of its own
        )  # fmt: skip
        assert code == 0, text
        assert r" caf\xe9/caf\xe90.jpg " in text


def test_names_are_printed_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets and colons are no markup, and a line end begins no line."""
    for name, image in zip(["a[red]b", "x[/b]", ":cat:", "new\nline"], things(4), strict=True):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "1.jpg").write_bytes(image)
    entry = {"name": "things", "kind": "image_folder", "params": {"path": str(tmp_path / "in")}}
    config = write_config(tmp_path / "c.yaml", sources=[entry])
    code, text, _ = call_infineg(capsys, "check", config, "--source", "things")
    assert code == 0
    for name in ("a[red]b", "x[/b]", ":cat:", r"new\nline"):
        assert f" {name} " in text


def test_full_disk_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]
) -> None:
    """By a limit of the size of files: a file system of a test's own takes rights."""
    monkeypatch.setattr(pipeline.build.driver, "open_cluster", open_inline)
    config = write_config(tmp_path / "c.yaml", output={"path": str(tmp_path / "data")})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        message = fails("build", config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "File too large; allow larger files (ulimit -f), then run the same" in message
    assert str(tmp_path / "data") in message


def test_output_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml")
    command = ["launch", "build", str(config), "--on", "slurm", "--dry-run"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "infineg", *command],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("infineg: the output")
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_bug_stays_a_bug() -> None:
    for bug in (ValueError("x"), KeyError("x"), AssertionError(), TypeError(), RecursionError()):
        assert as_failure(bug) is None
    for outside in (
        OSError(5, "Input/output error", "/a"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        pa.ArrowInvalid("x"), EOFError(),
    ):  # fmt: skip
        assert as_failure(outside) is not None
    assert "/a: Input/output error; " in str(as_failure(OSError(5, "Input/output error", "/a")))
