"""Worker processes of this machine: errors, deaths, an end with the process that began them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pyarrow as pa
import pytest

from pipeline.cluster.process import Process, Task, Template
from pipeline.cluster.processes import Processes
from pipeline.errors import ConfigError, InfinegError, TooManyRejects


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    """What a worker runs is found by its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        yield


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    """For all tests; those that die are replaced."""
    with closing(Processes(2, threads=1)) as processes:
        yield processes


class NamedTask(Task, frozen=True):
    name: str
    num_deaths: int = 0  # of processes that it is to end


def make() -> str:
    return f"worker {os.getpid()}"


def fail_to_make() -> str:
    raise ConfigError("no worker")


def run(worker: str, task: NamedTask) -> Iterator[pa.Table]:
    """Does what the name of the task says."""
    for number in range(3):
        yield pa.table({"task": [task.name], "number": [number], "by": [worker]})
        if task.name == "bad":
            raise TooManyRejects("all of it")
        if task.name == "bug" and number == 1:
            raise ZeroDivisionError("a bug")
        if task.name == "unpicklable":
            raise Unpicklable(needed="a word")
        flag = Path(task.name)
        if (
            task.name.startswith("/")
            and number == 1
            and flag.stat().st_size < (3 if task.careful else task.num_deaths)
        ):
            with flag.open("ab") as file:
                file.write(b"x")
            os.kill(os.getpid(), signal.SIGSEGV)


class Unpicklable(Exception):
    def __init__(self, *, needed: str) -> None:
        super().__init__(needed)


def task(name: str, *, num_deaths: int = 0) -> NamedTask:
    return NamedTask(name=name, num_deaths=num_deaths)


def ran(processes: Processes, *tasks: NamedTask) -> list[tuple[str, int]]:
    tables = processes.map(run, tasks, make_worker=make)
    return sorted((t["task"][0].as_py(), t["number"][0].as_py()) for t in tables)


def test_each_task_is_run_once_and_all_processes_are_used(processes: Processes) -> None:
    tables = list(processes.map(run, map(task, "abcdefgh"), make_worker=make))
    assert sorted((t["task"][0].as_py(), t["number"][0].as_py()) for t in tables) == [
        (name, number) for name in "abcdefgh" for number in range(3)
    ]
    assert len({t["by"][0].as_py() for t in tables}) == 2
    assert ran(processes) == []


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("bad", TooManyRejects, r"^all of it$"),
        ("bug", ZeroDivisionError, r"^a bug\nin a worker process:\n(?s:.*)in run\n"),
        ("unpicklable", RuntimeError, "Unpicklable"),
    ],
)
def test_error_is_raised_as_it_was_there_and_ends_the_others(
    name: str, error: type[Exception], message: str, processes: Processes
) -> None:
    tables = processes.map(run, [task("good"), task(name), task("good")], make_worker=make)
    with pytest.raises(error, match=message):
        list(tables)
    assert ran(processes, task("later")) == [("later", 0), ("later", 1), ("later", 2)]


def test_worker_that_cannot_be_made_is_an_error(processes: Processes) -> None:
    with pytest.raises(ConfigError, match=r"^no worker$"):
        list(processes.map(run, [task("good")], make_worker=fail_to_make))


def test_task_of_a_process_that_died_is_run_again_and_says_nothing_twice(
    processes: Processes, tmp_path: Path
) -> None:
    flag = tmp_path / "deaths"
    flag.touch()
    expected = [(name, number) for name in (str(flag), "good") for number in range(3)]
    assert ran(processes, task(str(flag), num_deaths=2), task("good")) == expected
    assert flag.stat().st_size == 2


def test_task_that_ends_three_processes_is_an_error(processes: Processes, tmp_path: Path) -> None:
    flag = tmp_path / "deaths"
    flag.touch()
    message = r"processes died .* SIGSEGV.*Segmentation fault.* in run.*build\.workers"
    with pytest.raises(InfinegError, match=message):
        ran(processes, task(str(flag), num_deaths=9).model_copy(update={"careful": True}))
    assert flag.stat().st_size == 3


def test_after_three_deaths_a_task_is_done_with_care(
    processes: Processes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flag = tmp_path / "deaths"
    flag.touch()
    assert len(ran(processes, task(str(flag), num_deaths=9), task("good"))) == 6
    assert "processes died of one task, the last by signal SIGSEGV (Fatal" in caplog.text


def test_template_can_be_forked_and_another_takes_its_place_when_it_dies(
    processes: Processes, tmp_path: Path
) -> None:
    flag = tmp_path / "deaths"
    flag.touch()
    assert len(ran(processes, task("good"))) == 3
    (template,) = (
        child
        for child in psutil.Process().children()
        if "pipeline.cluster.process " in " ".join(child.cmdline())
    )
    threads = {path.read_text() for path in Path(f"/proc/{template.pid}/task").glob("*/comm")}
    # A fork has no threads, and what they have locked stays so; jemalloc takes care of its own.
    assert threads <= {"python\n", "jemalloc_bg_thd\n"}
    template.kill()
    template.wait(5)
    assert len(ran(processes, task(str(flag), num_deaths=1), task("good"))) == 6


def test_the_end_of_a_process_of_an_earlier_template_leaves_the_next_one_running() -> None:
    others = set(psutil.Process().children())
    template = Template(threads=1)
    try:
        earlier = Process(template)
        (running,) = set(psutil.Process().children()) - others
        running.kill()
        running.wait(5)
        later = [Process(template), Process(template)]
        assert "it was forked from" in earlier.kill()
        assert not [how for each in later if "it was forked from" in (how := each.kill())]
    finally:
        template.close()


PROGRAM = """
import os, sys
from test_processes import Processes, run, make, task
processes = Processes(2, threads=1)
for table in processes.map(run, [task("a")], make_worker=make):
    pass
print("ready", flush=True)
sys.stdin.read()
"""


def test_workers_end_with_the_process_that_began_them_however_it_ends() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout.readline() == "ready\n"
        children = psutil.Process(parent.pid).children(recursive=True)
        assert len(children) == 2, "a template and a fork of it"
        parent.kill()
        deadline = time.monotonic() + 10
        while any(child.is_running() for child in children):
            assert time.monotonic() < deadline
            time.sleep(0.01)
