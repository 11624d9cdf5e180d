"""A data set built once by the real thing, for all tests that only read it."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.servers import S3Server, forget_clients, run_s3_server
from support.shared import made_once

if TYPE_CHECKING:
    from support.builds import Built
    from support.label import Labelled
    from support.mined_world import World

# Read when torch is imported, here and in processes begun here: the cores are shared with Ray.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Exported encoders are made once for all processes of all runs.
os.environ.setdefault("XDG_CACHE_HOME", str(Path(__file__).parents[1] / ".cache"))


def pytest_configure(config: pytest.Config) -> None:
    """Of Ray about its own defaults, which no caller can avoid."""
    config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning:ray.data.context")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Under `-m cluster` only files that have such tests: to import all takes 15 s of a core."""
    if config.option.markexpr != "cluster" or collection_path.suffix != ".py":
        return None
    return True if "pytest.mark.cluster" not in collection_path.read_text() else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whichever test comes first also waits for the data set.

    Files of tests that may take long come first: `make test` gives a file at a time to each of its
    processes, and a long one at the end would keep one of them busy alone.
    """
    longest = dict.fromkeys((item.path for item in items), 0)
    for item in items:
        waits = {"built", "world"} & set(getattr(item, "fixturenames", ()))
        if waits and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(120))
        if item.get_closest_marker("cluster"):  # on a busy machine Ray alone takes minutes
            item.add_marker(pytest.mark.timeout(900), append=False)
        if limit := item.get_closest_marker("timeout"):
            longest[item.path] = max((longest[item.path], *limit.args))
    items.sort(key=lambda item: -longest[item.path])


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> "Built":
    """Cats and four sources of negatives."""

    def make(folder: Path) -> "Built":
        # Imported here, because most tests must not wait for torch and Ray.
        from support.builds import Built, build_inline, config_of, write_inputs

        root = folder / "data"
        entries = write_inputs(folder / "inputs")
        config = config_of(root, entries)
        return Built(root, entries, config, build_inline(config))

    return made_once(tmp_path_factory, "built", make)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> "World":
    """A data set and a head trained on it. Not to be changed."""

    def make(folder: Path) -> "World":
        from support.mined_world import make_world

        return make_world(folder)

    return made_once(tmp_path_factory, "world", make)


@pytest.fixture(scope="session")
def mined_root(world: "World", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of its data set that is mined once. Not to be changed."""

    def make(folder: Path) -> Path:
        from support.mined_world import mine_copy

        return mine_copy(world, folder / "data")

    return made_once(tmp_path_factory, "mined", make)


@pytest.fixture
def world_copy(world: "World", tmp_path: Path) -> Path:
    """A copy of its data set, to be changed."""
    from support.builds import copy_dataset

    return copy_dataset(world.root, tmp_path / "data")


@pytest.fixture
def mined_copy(mined_root: Path, tmp_path: Path) -> Path:
    """A copy of the mined one, to be changed."""
    from support.builds import copy_dataset

    return copy_dataset(mined_root, tmp_path / "mined")


@pytest.fixture(scope="session")
def suspects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with a quarantine to review. Not to be changed."""

    def make(folder: Path) -> Path:
        from support.review import write_suspects

        return write_suspects(folder)

    return made_once(tmp_path_factory, "suspects", make)


@pytest.fixture(scope="session")
def labelled_once(tmp_path_factory: pytest.TempPathFactory) -> "Labelled":
    """A data set to label. Not to be changed."""
    from support.label import write_labelled

    return write_labelled(tmp_path_factory.mktemp("labelled"))


@pytest.fixture
def labelled(labelled_once: "Labelled", tmp_path: Path) -> "Labelled":
    """A copy of it, to be changed."""
    from support.label import copy_labelled

    return copy_labelled(labelled_once, tmp_path)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    with run_s3_server() as server:
        yield server


@pytest.fixture
def s3_root(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty folder on S3; this process and its children find the server by environment."""
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    forget_clients()
    yield s3_server.new_root()
    forget_clients()
