"""The wheel: what it holds, and that it works by itself in an environment of its own."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from support.processes import write_impostors

ROOT = Path(__file__).parents[1]
# Small enough to take seconds.
SMALL = [
    "selection={budget: 40, eval_budget: 30, candidates_per_selected: 2, pilot: 32}",
    "positives.drawn_cats.params.num_pictures=120",
    "output.image_size=64",
    "build.workers=1",
    "train.steps=30",
    "evaluate.alpha=0.2",
]

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


def uv(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "uv", *map(str, arguments)], cwd=ROOT, check=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    uv("build", "--quiet", "--wheel", "--out-dir", folder)
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_every_file_of_the_packages_and_takes_no_other_name(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {
        "infineg", "pipeline", "train",
    }  # fmt: skip
    listed = subprocess.run(
        ["git", "ls-files", "infineg", "pipeline", "train", "configs", "infra"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    installed = {f"infineg/{n}" if n.startswith(("configs", "infra")) else n for n in listed}
    assert len(installed) > 200
    assert installed - names == set()
    assert {"infineg/py.typed", "pipeline/py.typed", "train/py.typed"} <= names


def test_installed_without_extras_it_runs_the_demo_and_launches(
    wheel: Path, tmp_path: Path
) -> None:
    """In a folder with files of a user that have the names of our packages and data folders."""
    uv("venv", "--quiet", tmp_path / "env")
    python, infineg = (tmp_path / "env" / "bin" / name for name in ("python", "infineg"))
    uv("pip", "install", "--quiet", "--python", python, "--constraint", "constraints.txt", wheel)
    work = tmp_path / "work"
    work.mkdir()
    write_impostors(work)
    for name in ("configs/demo.yaml", "infra/values.yaml"):
        (work / name).parent.mkdir()
        (work / name).write_text("not: ours")

    def run(*command: object, code: int = 0) -> str:
        done = subprocess.run(
            [*map(str, command)], cwd=work, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    small = [word for override in SMALL for word in ("--set", override)]
    output = run(infineg, "demo", "--out", "out", *small)
    assert "report   out/run/report.html" in output
    assert (work / "out/run/model.safetensors").exists()
    assert (work / "out/run/report.html").stat().st_size > 10_000

    config = work / "out/run/config.yaml"
    manifest = run(infineg, "launch", "train", config, "--on", "slurm", "--dry-run")
    assert "#SBATCH --job-name=infineg-train-config" in manifest
    run(python, "-c", "import train.loop.ray_launcher", code=0)
    noise = "sources=[{name: n, kind: noise}]"
    refused = run(infineg, "check", config, "--source", "n", "--set", noise, code=2)
    assert "pip install 'infineg[generators]'" in refused
