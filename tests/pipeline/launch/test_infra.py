"""What can be said of `infra/` without a cluster: fields, policy, scripts, image, docs."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import typer
import yaml
from typer.testing import CliRunner

from pipeline.launch.templates import INFRA
from pipeline.telemetry.metrics import METRICS
from support.launching import ALL, MODELS, launch_named, pods_of, write_config
from train.cli import app

ROOT = INFRA.parent
ON_KUBERNETES = [name for name in ALL if name.startswith("kube")]
TEMPLATES = sorted(path for path in INFRA.rglob("*.j2") if path.parent.name != "kubernetes")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path / "cats.yaml")


def documents(name: str, config: Path, *overrides: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(launch_named(name, config, *overrides).text))


@pytest.mark.parametrize("name", ON_KUBERNETES)
def test_manifest_has_only_fields_that_its_operator_knows(name: str, config: Path) -> None:
    config_map, policy, manifest = documents(name, config)
    kubernetes_validate.validate(config_map, "1.34", strict=True)
    kubernetes_validate.validate(policy, "1.34", strict=True)
    MODELS[manifest["kind"]].model_validate(manifest)
    for pod in pods_of(manifest):
        kubernetes_validate.validate(pod, "1.34", strict=True)
        mounted = {volume["configMap"]["name"] for volume in pod["spec"]["volumes"][:1]}
        assert mounted == {config_map["metadata"]["name"]}


@pytest.mark.parametrize("name", ON_KUBERNETES)
def test_pods_are_allowed_nothing_that_they_do_not_need(name: str, config: Path) -> None:
    """Kubernetes' restricted Pod Security Standard, a limit of memory, a tag, secrets by name."""
    *_, manifest = documents(name, config, "cluster.env.PLACE=s3://bucket")
    for pod in pods_of(manifest):
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        assert not any("hostPath" in volume for volume in spec["volumes"])
        (container,) = spec["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        writable = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
        assert {"/tmp", "/dev/shm", container.get("workingDir", "/data")} <= writable
        assert {"name": "HOME", "value": "/tmp"} in container["env"]
        resources = container["resources"]
        assert resources["limits"]["memory"] == resources["requests"]["memory"]
        assert not container["image"].endswith(":latest")
        assert ":" in container["image"].rpartition("/")[2]
        plain = {each["name"] for each in container["env"] if "value" in each}
        if container["name"] == "ray-job-submitter":
            assert [each["name"] for each in container["env"]] == ["HOME"]
            continue
        assert {"PLACE", "HOME"} <= plain
        assert plain <= {"PLACE", "HOME", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"}
        for each in container["env"]:
            if each["name"] not in plain:
                assert each["valueFrom"]["secretKeyRef"]["name"] == "infineg"


def test_build_has_workers_that_decode_and_workers_that_embed_and_grows(config: Path) -> None:
    *_, job = documents("kuberay build", config)
    assert job["spec"]["backoffLimit"] > 0
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    gpus = {
        group["groupName"]: group["template"]["spec"]["containers"][0]["resources"]["limits"].get(
            "nvidia.com/gpu", 0
        )
        for group in cluster["workerGroupSpecs"]
    }
    assert gpus == {"decode": 0, "embed": 1}
    *_, without = documents("kuberay build", config, "cluster.gpu_workers={min: 0, max: 0}")
    groups = without["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert [group["groupName"] for group in groups] == ["decode"]


def test_queued_build_is_of_one_size_for_kueue_to_admit(config: Path) -> None:
    *_, job = documents("kuberay build, Kueue", config)
    assert job["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "team-a"}
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is False
    assert [g["replicas"] for g in cluster["workerGroupSpecs"]] == [8, 2]


@pytest.mark.parametrize("name", ["kuberay train", "kubeflow train"])
def test_training_keeps_its_run_on_the_volume_and_has_a_process_a_gpu(
    name: str, config: Path
) -> None:
    sizes = "cluster.trainers={min: 2, max: 2, gpus: 4}"
    *_, job = documents(name, config, sizes)
    for pod in pods_of(job):
        claims = [v["persistentVolumeClaim"] for v in pod["spec"]["volumes"] if v["name"] == "data"]
        assert claims == [{"claimName": "runs"}]
    if name == "kuberay train":
        assert job["spec"]["entrypoint"].endswith("--launcher ray --num-workers 8")
    else:
        trainer = job["spec"]["trainer"]
        assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 4)


@pytest.mark.parametrize(
    ("name", "section", "serving"),
    [("kuberay build", "build", "ray-head"), ("kuberay train", "train", "ray-worker")],
)
def test_pods_that_serve_metrics_say_so_to_prometheus(
    name: str, section: str, serving: str, config: Path
) -> None:
    *_, job = documents(name, config, f"{section}.metrics={{port: 9464, host: 0.0.0.0}}")
    MODELS[job["kind"]].model_validate(job)
    found = {
        pod["spec"]["containers"][0]["name"]: pod["metadata"].get("annotations")
        for pod in pods_of(job)
    }
    scraped = {"prometheus.io/scrape": "true", "prometheus.io/port": "9464"}
    silent = "ray-worker" if serving == "ray-head" else "ray-head"
    assert found == {serving: scraped, silent: None, "ray-job-submitter": None}


@pytest.mark.parametrize("name", ON_KUBERNETES)
def test_pods_take_connections_of_their_job_and_of_the_operator_alone(
    name: str, config: Path
) -> None:
    _, policy, manifest = documents(name, config)
    spec = policy["spec"]
    chosen = spec["podSelector"]["matchLabels"]
    if manifest["kind"] == "TrainJob":  # its operator names the pods
        assert chosen == {"jobset.sigs.k8s.io/jobset-name": manifest["metadata"]["name"]}
    else:
        for pod in pods_of(manifest):
            assert chosen.items() <= pod["metadata"]["labels"].items(), pod["metadata"]
    assert chosen
    assert spec["policyTypes"] == ["Ingress"]
    same, *operator = spec["ingress"]
    assert same == {"from": [{"podSelector": {"matchLabels": chosen}}]}
    ports = [
        (p["port"], each["from"][0]["podSelector"]) for each in operator for p in each["ports"]
    ]
    is_ray = manifest["kind"] != "TrainJob"
    known = {"matchLabels": {"app.kubernetes.io/component": "kuberay-operator"}}
    assert ports == [(8265, known)] * is_ray
    with_metrics = documents(
        name, config, "build.metrics={port: 9464}", "train.metrics={port: 9464}"
    )[1]["spec"]["ingress"]
    assert with_metrics[-1]["ports"] == [{"port": 9464, "protocol": "TCP"}]
    assert len(with_metrics) == len(spec["ingress"]) + 1


def test_job_server_of_ray_wants_a_token_or_is_on_loopback(config: Path) -> None:
    for name in ("kuberay build", "kuberay build, Kueue", "kuberay nightly", "kuberay train"):
        *_, manifest = documents(name, config)
        job = manifest["spec"].get("jobTemplate", manifest["spec"])
        assert job["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    (cluster,) = documents("ray cluster", config)
    assert "--dashboard-host=127.0.0.1 " in cluster["head_start_ray_commands"][-1]
    (task,) = documents("sky build", config)
    assert task["run"].index("export RAY_DASHBOARD_HOST=127.0.0.1") < task["run"].index("start_cl")
    script = launch_named("slurm build", config).text
    assert "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN" in script
    assert "dashboard-host" not in script, "the default is loopback"


def test_ray_up_takes_the_cluster(config: Path) -> None:
    schema = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
    (cluster,) = documents("ray cluster", config)
    jsonschema.validate(cluster, json.loads(schema.read_text()))
    types = cluster["available_node_types"]
    assert cluster["head_node_type"] in types
    assert cluster["max_workers"] == sum(kind.get("max_workers", 0) for kind in types.values())


def shell_texts(config: Path) -> Iterator[tuple[str, str]]:
    for name in ALL:
        text = launch_named(name, config, "cluster.env.PLACE=a b").text
        if name.startswith("slurm"):
            yield name, text
        elif name.startswith("sky"):
            task = yaml.safe_load(text)
            yield f"{name}, setup", "#!/bin/bash\n" + task["setup"]
            yield f"{name}, run", "#!/bin/bash\n" + task["run"]
    yield ".ci/run", (ROOT / ".ci" / "run").read_text()


def test_shell_scripts_pass_shellcheck(config: Path) -> None:
    shellcheck = Path(sys.executable).parent / "shellcheck"
    texts = list(shell_texts(config))
    assert len(texts) == 7
    for name, text in texts:
        # SC1090, SC1091: an environment that is not here.
        command = [shellcheck, "--exclude=SC1090,SC1091", "-"]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        assert done.stdout == "", f"{name}: {done.stdout}"
        assert done.returncode == 0, done.stderr


def test_dockerfile_passes_hadolint_and_copies_only_what_is_let_in() -> None:
    dockerfile = INFRA / "Dockerfile"
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, dockerfile], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    text = dockerfile.read_text()
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*", "nothing but what is named"
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    copied = {
        word
        for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE)
        for word in line.split()[:-1]
    }
    assert copied == let_in
    assert all((ROOT / name).exists() for name in copied)
    assert re.search(r"^USER [1-9]\d*:", text, re.MULTILINE), "Kubernetes checks a number"
    assert text.index("--requirements pyproject.toml") < text.index("COPY pipeline"), (
        "a change of the code must not install every package anew"
    )
    installs = re.findall(r"pip install (?:.|\\\n)+?(?=\n[A-Z]|\n    &&|\n\n)", text)
    assert all("constraints.txt" in each or "--no-deps" in each for each in installs)


def test_image_and_sizes_stand_in_one_file() -> None:
    values = yaml.safe_load((INFRA / "values.yaml").read_text())
    for path in [*TEMPLATES, *(INFRA / "kubernetes").iterdir()]:
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        text = "\n".join(lines)
        assert values["image"] not in text, path
        for field in ("image", "cpu", "memory", "nvidia.com/gpu", "InstanceType", "region"):
            for value in re.findall(rf"(?<![\w./-]){re.escape(field)}: ([^,}}\n]+)", text):
                assert "{{" in value, f"{path}: {field}: {value}"


@pytest.mark.parametrize("path", [*TEMPLATES, INFRA / "Dockerfile"], ids=lambda path: path.name)
def test_file_opens_with_its_command_what_it_starts_and_what_to_change(path: Path) -> None:
    head = re.match(r"(#(?!SBATCH).*\n)+", path.read_text())[0]
    assert "infineg launch" in head or "docker build" in head
    assert re.search(r"\bStarts\b", head)
    assert re.search(r"\bChange\b", head)


def test_dashboard_shows_every_metric_and_no_other() -> None:
    dashboard = json.loads((INFRA / "grafana" / "dashboard.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    shown = set(re.findall(r"\binfineg_\w+", " ".join(queries)))
    assert shown == {metric.name for metric in METRICS}
    labels = {metric.name: metric.labels for metric in METRICS}
    for query in queries:
        assert query.count("(") == query.count(")")
        for label in re.findall(r"sum by \((\w+)\)", query):
            (name, *_) = re.findall(r"\binfineg_\w+", query)
            assert label in labels[name]
    for metric in METRICS:
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        if metric.kind == "counter":
            assert all(
                f"rate({metric.name}" in query or "planned" in query
                for query in queries
                if metric.name in query
            ), metric.name
    assert all(panel["description"] for panel in panels)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    table = (INFRA / "README.md").read_text()
    assert all(f"| `{m.name}` | {', '.join(m.labels)} | {m.help} |" in table for m in METRICS)


def test_every_command_that_is_written_down_exists(config: Path) -> None:
    group: Any = typer.main.get_command(app)
    options = {
        name: {option for parameter in command.params for option in parameter.opts}
        for name, command in group.commands.items()
    }
    found = list(written_commands(config))
    assert len({command for _, command, _ in found}) > 6
    for where, command, line in found:
        assert command in options, f"{where}: infineg {command}: {line}"
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", line):
            known = option in options[command] or option in ("--debug", "--help")
            assert known, f"{where}: {command} {option}: {line}"


def test_every_launch_of_the_guide_shows_its_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a newcomer would type them, one after the other, with --dry-run."""
    blocks = re.findall(r"```\n(.*?)```", (INFRA / "README.md").read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if "CONFIG" not in line]
    num_launches = 0
    monkeypatch.chdir(ROOT)
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[:1] == ["export"]:
            monkeypatch.setenv(*words[1].split("=", 1))
        if words[:2] == ["infineg", "launch"]:
            done = CliRunner().invoke(app, [*words[1:], "--dry-run"])
            assert done.exit_code == 0, f"{line}: {done.output}"
            assert "submitted by:" in done.output
            num_launches += 1
    assert num_launches > 10


def written_commands(config: Path) -> Iterator[tuple[str, str, str]]:
    """(place, command, its line up to the next command) of infra, configs and manifests."""
    texts = {
        str(path): path.read_text()
        for path in [*INFRA.rglob("*"), *ROOT.glob("configs/*")]
        if path.is_file() and path.suffix != ".md"  # see test_docs.py
    }
    for name in ALL:
        submission = launch_named(name, config)
        text = submission.text.replace("\\\n", " ")
        texts[f"{name}, rendered"] = f"{text}\n{submission.command}"
    for where, text in texts.items():
        for match in re.finditer(r"(?<![\w./-])infineg (?!infineg)([a-z]+)\b([^\n]*)", text):
            line = re.split(r"&&|[;|#`]|\s-- |infineg", match[2])[0]
            if not re.match(r"\s+(is|on|in|and|has|was)\b", match[0].removeprefix("infineg")):
                yield where, match[1], line
