"""`import infineg`: what a notebook sees, and a user's own files that have our packages' names."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import infineg
from support.builds import CATS, Built, first_samples
from support.launching import write_config
from support.processes import write_impostors
from support.train_runs import INFINEG

ROOT = Path(__file__).parents[2]


def test_importing_it_does_not_wait_for_torch_and_ray() -> None:
    program = "import infineg, sys; print({'torch', 'ray', 'pyarrow', 'pydantic'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_every_public_name_exists_and_no_other_is_invented() -> None:
    assert all(getattr(infineg, name) is not None for name in infineg.__all__)
    assert dir(infineg) == sorted(infineg.__all__), "for completion"
    with pytest.raises(AttributeError, match="no attribute 'Classifier'"):
        infineg.Classifier  # noqa: B018
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert infineg.__version__ == project["version"]


def test_wrong_settings_are_config_errors_that_name_the_field(tmp_path: Path) -> None:
    path = write_config(tmp_path / "cats.yaml", train={"run": "run", "stepz": 3})
    with pytest.raises(infineg.ConfigError, match=r"selection\.beta"):
        infineg.load_config(path, ["selection.beta=-1"])
    with pytest.raises(infineg.ConfigError, match=r"^train\.stepz: "):
        infineg.train(infineg.load_config(path))


def test_wrong_arguments_are_config_errors(tmp_path: Path) -> None:
    config = infineg.load_config(write_config(tmp_path / "cats.yaml"))
    for call in (infineg.build, infineg.train):
        with pytest.raises(infineg.ConfigError, match=r"load_config"):
            call("cats.yaml")
    with pytest.raises(infineg.ConfigError, match=r"sources is the string 'squares'; a list"):
        infineg.build(config, sources="squares")
    with pytest.raises(infineg.ConfigError, match="overrides is the string"):
        infineg.load_config(tmp_path / "cats.yaml", "selection.beta=0")


def test_functions_work_together(built: Built, tmp_path: Path) -> None:
    section = {"run": str(tmp_path / "run"), "steps": 40, "batch_size": 32, "warmup_steps": 5}
    config = built.config.model_copy(update={"train": section})
    assert infineg.build(config) == built.generation, "built already"
    run = infineg.train(config)
    assert infineg.train(config) == run, "trained already"
    metrics = infineg.evaluate(run, ["evaluate.alpha=0.2"])
    assert metrics["target"]["cat"]["threshold"] is not None
    assert (run / "report.html").exists()
    detector = infineg.Detector.load(run)
    assert detector(first_samples(CATS, 1)[0].image).label in ("cat", "")


SCRIPT = """
import infineg
try:
    infineg.train(infineg.load_config("cats.yaml"))
except infineg.InfinegError as error:
    print(error)
"""
LAUNCH = ["launch", "train", "cats.yaml", "--on", "local"]
TWO = ["--set", "cluster.trainers={min: 1, max: 1, gpus: 2}"]
NO_DATA = "nowhere: no data set there"


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ([INFINEG, "--help"], 0, "Usage: infineg"),
        ([sys.executable, "-m", "infineg", "--help"], 0, "Usage: infineg"),
        ([sys.executable, "-m", "infineg", *LAUNCH], 2, NO_DATA),
        pytest.param([INFINEG, *LAUNCH, *TWO], 1, NO_DATA, marks=pytest.mark.cluster),
        ([sys.executable, "train.py"], 0, NO_DATA),
    ],
    ids=["command", "module", "launch", "torchrun", "script"],
)
def test_files_of_the_user_are_not_imported_in_our_place(
    command: list[str], code: int, said: str, tmp_path: Path
) -> None:
    """A working folder with `train.py` and `pipeline/`, and with a `yaml.py`."""
    write_config(tmp_path / "cats.yaml", output={"path": "nowhere"})
    write_impostors(tmp_path)
    if command[1] == "train.py":  # the user's own script: Python puts its folder first
        (tmp_path / "train.py").write_text(SCRIPT)
    else:
        (tmp_path / "train.py").rename(tmp_path / "yaml.py")
        (tmp_path / "train.py").write_text((tmp_path / "yaml.py").read_text())
    env = {**os.environ, "NO_COLOR": "1", "COLUMNS": "120"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    output = done.stdout + done.stderr
    assert "IMPOSTOR" not in output
    assert said in output
    assert done.returncode == code


def test_a_package_that_hides_ours_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("")
    program = "import train, infineg"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert f"ImportError: rename {tmp_path}/train.py: it hides the package 'train'" in done.stderr


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_command_runs_without_the_streams_that_its_caller_has_closed(
    closed: str, tmp_path: Path
) -> None:
    script = f"{sys.executable} -m infineg status {tmp_path / 'none'} {closed}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_small_head_does_not_wait_for_cores_that_others_use() -> None:
    """Spinning threads of OpenMP do; the policy is read when torch is loaded."""
    program = (
        "import os, sys; sys.argv = ['infineg', '--help']\n"
        "from infineg.__main__ import main\n"
        "try: main()\nexcept SystemExit: print(os.environ['OMP_WAIT_POLICY'], file=sys.stderr)"
    )
    without = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    for given, wanted in ({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active"):
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, env=without | given
        )
        assert done.stderr.strip() == wanted
