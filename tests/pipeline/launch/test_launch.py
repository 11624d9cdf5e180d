"""`infineg launch`: what reaches a platform's client, and what never does.

No Kubernetes, Slurm, cloud is here: a program on PATH writes down what its client was asked. The
scripts are run by a real bash, Ray's job server is a real one.
"""

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.dataset import Dataset
from pipeline.errors import ConfigError
from support.builds import folder_entry
from support.launching import (
    ALL,
    VOLUME,
    Recorder,
    launch_named,
    launched,
    put_recorder,
    write_config,
)
from support.processes import Host, call_infineg, free_port, run_infineg, write_impostors
from support.ray_nodes import ray_nodes

HOSTILE = (
    'a"b; touch OWNED #',
    "$(touch OWNED) `touch OWNED`",
    "line\n#SBATCH --uid=0\n  - structure: yes\n---\nkind: Secret",
    "{{ 7 * 7 }} {% raw %} infineg-value-0-",
    "'quoted' \\ \t \u2028 \u00e9 \U0001f600 \x85",
    "1e3",
    "0x10",
    "no",
    "~",
    "*alias &anchor !tag",
)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path / "cats.yaml")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that comes first on PATH."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def call(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    return call_infineg(capfd, "launch", *arguments)


@pytest.mark.parametrize(
    ("name", "client", "arguments"),
    [
        ("kuberay build", "kubectl", ["apply", "-f", "-"]),
        ("kuberay nightly", "kubectl", ["apply", "-f", "-"]),
        ("kubeflow train", "kubectl", ["apply", "-f", "-"]),
        ("slurm build", "sbatch", []),
        ("sky build", "sky", ["jobs", "launch", "--yes", "--detach-run", "task.yaml"]),
        ("ray cluster", "ray", ["up", "--yes", "infineg-cluster-cats.yaml"]),
    ],
)
def test_client_gets_what_the_dry_run_prints(
    name: str,
    client: str,
    arguments: list[str],
    config: Path,
    programs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    recorder = put_recorder(programs, client, answer="submitted")
    kind, on, needed, schedule = ALL[name]
    options = [word for each in needed for word in ("--set", each)]
    options += ["--schedule", schedule] if schedule else []
    code, printed, _ = call(capfd, kind, config, "--on", on, *options, "--dry-run")
    assert code == 0
    assert recorder.calls == [], "a dry run starts nothing"
    code, output, _ = call(capfd, kind, config, "--on", on, *options)
    assert code == 0
    assert "submitted" in output
    assert [made["arguments"] for made in recorder.calls] == [arguments]
    read = recorder.calls[0]["files"].get(arguments[-1]) if arguments else None
    assert (read or recorder.calls[0]["input"]) == printed


def test_missing_client_is_named_with_what_to_install(
    config: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    for on, client, remedy in (
        ("kuberay", "kubectl", "install kubectl"),
        ("slurm", "sbatch", "login node"),
        ("ray", "ray", "infineg[cluster]"),
        ("sky", "sky", "skypilot"),
    ):
        code, _, output = call(capfd, "build", config, "--on", on)
        assert code == 1
        assert f"{client} is not on this machine" in output
        assert remedy in output


def test_failure_of_the_client_is_the_exit_code(
    config: Path, programs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    put_recorder(programs, "kubectl", exit_code=3)
    code, _, output = call(capfd, "build", config, "--on", "kuberay")
    assert code == 3
    assert "kubectl apply -f - ended with exit code 3" in output


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize(
    "name", ["kuberay build", "kuberay nightly", "kubeflow train", "sky build"]
)
def test_config_arrives_as_it_is_whatever_it_holds(name: str, text: str, tmp_path: Path) -> None:
    """As a value of the config and of the environment, and nothing of it becomes structure."""
    config = write_config(
        tmp_path / "cats.yaml", sources=[folder_entry("hostile", Path("/x"), params={"path": text})]
    )
    written = list(yaml.safe_load_all(launch_named(name, config, VOLUME).text))
    plain = list(yaml.safe_load_all(launch_named(name, write_config(config), VOLUME).text))
    assert [shape(each) for each in written] == [shape(each) for each in plain]
    carried = next(
        find(written, key) for key in ("config.yaml", "INFINEG_CONFIG") if has(written, key)
    )
    assert yaml.safe_load(carried)["sources"][0]["params"]["path"] == text

    config = write_config(tmp_path / "cats.yaml", cluster={"env": {"PLACE": text}})
    written = list(yaml.safe_load_all(launch_named(name, config, VOLUME).text))
    values = {n["value"] for n in named(written, "PLACE")} or {find(written, "PLACE")}
    assert values == {text}


def shape(node: Any) -> Any:
    """Keys and lengths, without the values."""
    if isinstance(node, dict):
        return {key: shape(child) for key, child in node.items()}
    return [shape(child) for child in node] if isinstance(node, list) else None


def find(node: Any, key: str) -> Any:
    """The value of a key, wherever it is."""
    found = list(_walk(node, key))
    assert found, key
    return found[0]


def has(node: Any, key: str) -> bool:
    return bool(list(_walk(node, key)))


def _walk(node: Any, key: str) -> Iterator[Any]:
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    if isinstance(node, dict) and key in node:
        yield node[key]
    for child in children:
        yield from _walk(child, key)


def named(node: Any, name: str) -> list[dict[str, Any]]:
    """Members of `env` lists."""
    return [each for env in _walk(node, "env") for each in env if each["name"] == name]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("kind", ["build", "train"])
def test_bash_reads_the_words_of_a_slurm_script_as_they_are(
    kind: str, text: str, tmp_path: Path, programs: Path
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    config = write_config(folder / "it's $HOME; touch OWNED.yaml", cluster={"env": {"PLACE": text}})
    override = f"variables.NOTE={json.dumps(text)}"
    script = launched(kind, config, "slurm", override).text
    srun = run_script(script, programs, folder, SLURM_JOB_ID="7", SLURM_NNODES="2")
    words = srun.calls[-1]["arguments"]
    assert str(config) in words
    assert override in words
    assert list(folder.glob("OWNED*")) == []
    # sbatch reads no further than the first command.
    head = itertools.takewhile(lambda line: line.startswith("#"), script.splitlines())
    lines = {line.partition("=")[0] for line in head if line.startswith("#SBATCH")}
    assert lines <= SBATCH, "no line comes from a value"


SBATCH = {
    f"#SBATCH --{name}"
    for name in (
        "job-name", "nodes", "ntasks-per-node", "exclusive", "cpus-per-task", "mem",
        "gpus-per-node", "time", "signal", "requeue", "open-mode", "output",
    )
}  # fmt: skip


def run_script(script: str, programs: Path, folder: Path, **env: str) -> Recorder:
    srun = put_recorder(programs, "srun")
    put_recorder(programs, "scontrol", answer="node-1")
    # The script puts the folder of this Python first.
    path = f"{programs}:{Path(sys.executable).parent}"
    done = subprocess.run(
        ["bash", "-c", script.replace('"$PATH"', f'"{path}"').replace("PATH=", "_PATH=")],
        cwd=folder,
        env={**os.environ, "SLURM_JOB_NODELIST": "node-[1-2]", "SLURM_CPUS_PER_TASK": "2", **env},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return srun


def test_slurm_job_that_is_told_to_end_goes_back_into_the_queue(
    config: Path, programs: Path, tmp_path: Path
) -> None:
    """The shell hears USR1 while it waits for srun, hands it on in training, and requeues."""
    for kind, heard in (("build", False), ("train", True)):
        log = tmp_path / f"{kind}.heard"
        srun = programs / "srun"
        srun.write_text(
            f'#!/bin/sh\n[ "$1 $2" = "ray stop" ] && exit\n'
            f"trap 'touch {log}; exit 1' USR1\n"
            'sleep 0.5\nkill -USR1 "$PPID"\nfor i in 1 2 3 4 5 6 7 8 9 10; do sleep 0.2; done\n'
        )
        srun.chmod(0o755)
        scontrol = put_recorder(programs, "scontrol", answer="node-1")
        scontrol.log.unlink(missing_ok=True)
        script = launched(kind, config, "slurm").text.replace("export PATH=", "export _PATH=")
        env = {**os.environ, "SLURM_JOB_ID": "7", "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "a"}
        done = subprocess.run(
            ["bash", "-c", script],
            env={**env, "SLURM_CPUS_PER_TASK": "2"},
            cwd=tmp_path,
            timeout=20,
            check=False,
        )
        assert done.returncode != 0
        assert [made["arguments"] for made in scontrol.calls][-1] == ["requeue", "7"]
        assert log.exists() is heard


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("cluster.image=a b", "image"),
        ("cluster.image='x\"\\n'", "image"),
        ("cluster.cpu_workers.max=0.5", "cpu_workers.max"),
        ("cluster.cpu_workers={min: 3, max: 2}", "min 3 is over max 2"),
        ("cluster.trainers={min: 1, max: 2}", "does not grow"),
        ("cluster.kubernetes.namespace=a/b", "kubernetes.namespace"),
        ("cluster.kubernetes.queue='a\\nb'", "kubernetes.queue"),
        ('cluster.slurm.partition="x\\n#SBATCH --uid=0"', "slurm.partition"),
        ("cluster.slurm.acount=x", "slurm.acount"),
        ("cluster.env={'A B': x}", "env"),
        ("cluster.env.AWS_SECRET_ACCESS_KEY=abc", "credentials are not read"),
        ("cluster.env.PLACE=https://me:abc@example.org/x", "holds a credential"),
    ],
)
def test_value_that_cannot_be_is_refused_by_name(
    override: str, field: str, config: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capfd, "build", config, "--on", "slurm", "--set", override, "--dry-run")
    assert code == 2
    assert "cluster" in err
    assert field in err
    assert "abc" not in err
    assert out == ""


def test_values_of_the_config_win_over_those_of_the_site(
    config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("image: mine:1\ncpu_workers: {max: 3}\nretries: 1\n")
    write_config(config, cluster={"cpu_workers": {"max": 5}, "retries": 2})

    def launched_with(*options: object) -> tuple[int, int, str]:
        _, text, _ = call(capfd, "build", config, "--on", "kuberay", "--dry-run", *options)
        *_, manifest = yaml.safe_load_all(text)
        spec = manifest["spec"]
        group = spec["rayClusterSpec"]["workerGroupSpecs"][0]
        container = group["template"]["spec"]["containers"][0]
        return spec["backoffLimit"], group["maxReplicas"], container["image"]

    assert launched_with()[:2] == (2, 5)
    assert launched_with("--values", mine) == (2, 5, "mine:1")
    assert launched_with("--set", "cluster.retries=7")[0] == 7


@pytest.mark.parametrize("name", [name for name in ALL if not name.startswith("local")])
def test_no_credential_of_this_machine_is_in_a_manifest(
    name: str, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "HF_TOKEN", "PLACE"):
        monkeypatch.setenv(variable, "hunter2")
    write_config(config, sources=[folder_entry("x", Path("${PLACE}/x"))])
    submission = launch_named(name, config)
    assert "hunter2" not in submission.text
    assert "hunter2" not in submission.command
    if "slurm" not in name and "cluster" not in name:  # these share the environment, or have no job
        assert "${PLACE}/x" in submission.text


def test_signed_address_in_the_config_is_refused(config: Path) -> None:
    write_config(
        config, sources=[folder_entry("x", Path("/y"), params={"path": "s3://b/x?sig=abc"})]
    )
    with pytest.raises(ConfigError, match=r"sources\.0\.params\.path: .*\*\*\*.* credential"):
        launched("build", config, "kuberay")


@pytest.mark.parametrize(
    ("kind", "on", "overrides", "message"),
    [
        ("build", "kuberay", ["output.path=data/cats"], "output.path 'data/cats' would be lost"),
        ("train", "kuberay", [], "train.run 'runs/cats' would be lost with its pod"),
        ("train", "kubeflow", [], "train.run 'runs/cats' would be lost with its pod"),
        ("train", "kubeflow", [VOLUME, "train.run=/elsewhere/x"], "is mounted at /data"),
        ("build", "ray", ["output.path=data/cats"], "a job.s folder is deleted with the job"),
        ("train", "sky", [], "train.run below /runs"),
        ("build", "kubeflow", [], "only trains"),
        ("cluster", "slurm", [], "so --on ray"),
    ],
)
def test_job_whose_work_would_be_lost_is_not_started(
    kind: str, on: str, overrides: list[str], message: str, config: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        launched(kind, config, on, *overrides)


@pytest.mark.parametrize("schedule", ["nightly", "0 1 * *"])
def test_schedule_that_is_no_cron_line_is_refused(schedule: str, config: Path) -> None:
    with pytest.raises(ConfigError, match="five fields of cron"):
        launched("build", config, "kuberay", schedule=schedule)
    with pytest.raises(ConfigError, match="only KubeRay has nightly jobs"):
        launched("build", config, "slurm", schedule="0 1 * * *")


def test_cluster_that_grows_is_told_how_far_and_waits_for_a_killed_build(config: Path) -> None:
    def build_of(*overrides: str) -> dict[str, Any]:
        config_map, *_ = yaml.safe_load_all(launched("build", config, "kuberay", *overrides).text)
        return dict(yaml.safe_load(config_map["data"]["config.yaml"])["build"])

    sizes = ["cluster.cpu_workers.max=3", "cluster.cpu_workers.cpus=4", "cluster.gpu_workers.max=0"]
    assert build_of(*sizes) == {"address": "auto", "lease_wait_s": 180, "workers": 12}
    assert build_of(*sizes, "build.cpus_per_worker=2")["workers"] == 6
    assert build_of("build.workers=5")["workers"] == 5
    gpus = "cluster.gpu_workers={cpus: 8, gpus: 4, max: 2}"
    embed = "build.embed_on=actors"
    grown = build_of(*sizes[:2], gpus, embed)
    assert (grown["actors"], grown["workers"]) == (8, 12 + 16 - 8)
    assert build_of(*sizes[:2], gpus, embed, "build.gpus_per_actor=0.5")["actors"] == 16
    with pytest.raises(ConfigError, match="no machine has that many"):
        build_of(*sizes, embed)


@pytest.mark.parametrize("address", ["null", pytest.param("local", marks=pytest.mark.cluster)])
def test_local_launch_builds(address: str, tmp_path: Path) -> None:
    """In a folder with files of a user that workers must not import, of Ray or without."""
    write_impostors(tmp_path)
    config = write_config(tmp_path / "cats.yaml", build={"workers": 1})
    arguments = ["launch", "build", config.name, "--on", "local", "--set", "output.path=data"]
    arguments += ["--set", f"build.address={address}"]
    code, output = run_infineg(*arguments, log=tmp_path / "log", cwd=tmp_path)
    assert code == 0, output
    assert "IMPOSTOR" not in output
    assert Dataset(str(tmp_path / "data")).read_generation().counts.read == 248


@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_job_submitted_to_a_running_ray_builds(tmp_path: Path) -> None:
    config = write_config(tmp_path / "cats.yaml")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parents[3]),
    }
    host = Host("127.0.0.1")
    port = free_port()
    address = f"http://{host.address}:{port}"
    with ray_nodes([host], num_started=0) as cluster:
        cluster.env["PATH"] = environment["PATH"]  # of the machine that the job runs on
        cluster.start(num_cpus=2, dashboard_port=port)
        environment |= cluster.env
        for attempt in range(20):
            code, output = run_infineg(
                *("launch", "build", config, "--on", "ray"),
                *("--set", f"output.path={tmp_path}/data"),
                *("--set", f"cluster.ray.address={address}"),
                log=tmp_path / f"log{attempt}",
                **environment,
            )
            if "No available agent to submit job, please try again later" not in output:
                break  # the job server answers before it is ready
        assert code == 0, output
        job = re.search(r"raysubmit_\w+", output)
        assert job is not None, output
        followed = subprocess.run(
            ["ray", "job", "logs", "--follow", "--address", address, job[0]],
            env=environment, capture_output=True, text=True, timeout=400, check=False,
        )  # fmt: skip
    output = followed.stdout + followed.stderr
    assert "committed generation 1" in output, output
    # Wrapped to the width of a terminal that is none.
    assert f"dashboard: {address}" in " ".join(output.split()), output
    assert Dataset(str(tmp_path / "data")).read_generation().counts.read == 248
