"""The command as a user meets it: exit codes, messages, and the main job from end to end."""

import json
import re
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import pipeline.build.driver
from support.builds import CATS, first_samples, open_inline, squares
from support.launching import write_config
from support.processes import call_infineg, run_infineg, running_infineg, wait_until

COMMANDS = (
    "demo", "plan", "build", "status", "verify", "check", "review", "takedown", "train", "evaluate",
    "predict", "mine", "launch",
)  # fmt: skip


def config_file(tmp_path: Path) -> Path:
    """A config of the whole job that takes seconds."""
    return write_config(
        tmp_path / "config.yaml",
        sources=[squares(num_pictures=300, per_partition=100)],
        selection={"budget": 60, "pilot": 100},
        split={"val": 0.25, "test": 0.25},
        output={"path": "${HERE}/data", "image_size": 64, "samples_per_shard": 40},
        build={"workers": 1},
        train={"run": "${HERE}/run", "steps": 60, "batch_size": 32, "warmup_steps": 5},
        evaluate={"alpha": 0.05},
    )


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code, and output with errors."""
    code, *output = call_infineg(capsys, *arguments)
    return code, "".join(output)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, output = call(capsys, command, "--help")
    assert code == 0
    assert f"infineg {command}" in output


def test_help_does_not_wait_for_torch_and_ray() -> None:
    program = (
        "import sys; from train.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print([m for m in ('torch', 'ray', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bogus"], "No such command"),
        (["build"], "Missing argument"),
        (["build", "nowhere.yaml"], "nowhere.yaml: No such file"),
        (["build", "CONFIG", "--set", "selection.beta=-1"], "selection.beta"),
        (["build", "CONFIG", "--set", "selection.bta=1"], "selection.bta"),
        (["build", "CONFIG", "--source", "moon"], "--source moon: the config has cats, squares"),
        (["check", "CONFIG", "--source", "moon"], "--source moon: the config has cats, squares"),
        (["train", "CONFIG", "--set", "train.mode=fine"], "'head' or 'finetune', got 'fine'"),
        (["train", "CONFIG"], "no data set there"),
        (["status", "/nowhere"], "/nowhere: no data set there"),
        (["verify", "/nowhere"], "/nowhere: no data set there"),
        (["review", "/nowhere"], "/nowhere: no data set there"),
        (["predict", "/nowhere", "."], "/nowhere"),
        (["evaluate", "/nowhere"], "/nowhere"),
    ],
)
def test_wrong_use_exits_with_2_and_says_where(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HERE", str(tmp_path))
    config = str(config_file(tmp_path))
    given = [config if argument == "CONFIG" else argument for argument in arguments]
    code, output = call(capsys, *given)
    assert code == 2
    assert message in output
    assert "Traceback" not in output


def test_version_and_help_of_the_command_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "--version") == (0, f"infineg {version('infineg')}\n")
    code, output = call(capsys, "--help")
    assert code == 0
    assert all(f"--{name} " in output for name in ("debug", "log-format", "version"))


@pytest.mark.parametrize("option", ["--debug", "--log-format=json", "--version"])
def test_option_of_the_command_itself_is_refused_after_a_command(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, output = call(capsys, "verify", "/nowhere", option)
    assert code == 2
    (name, *_) = option.split("=")
    text = " ".join(output.replace("│", "").split())
    assert f"give it before the command: infineg {name} ..." in text


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    code, output = run_infineg("--debug", "build", "nowhere.yaml", log=tmp_path / "log")
    assert code != 0
    assert "Traceback" in output


def test_interrupted_build_exits_with_130_and_says_how_to_go_on(tmp_path: Path) -> None:
    log, reference = tmp_path / "log", tmp_path / "data" / "reference.json"
    here = str(tmp_path)
    with running_infineg("build", config_file(tmp_path), log=log, HERE=here) as process:
        wait_until(reference.exists, process, log)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=40) == 130
    assert "run the same command again to resume" in log.read_text()


@pytest.mark.timeout(240)
def test_main_job_from_plan_to_prediction(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What needs Ray, trains or draws is a process; the others would only import it all again."""
    monkeypatch.setenv("HERE", str(tmp_path))
    config, data, run = config_file(tmp_path), tmp_path / "data", tmp_path / "run"

    def infineg(*arguments: object) -> str:
        code, text = run_infineg(*arguments, log=tmp_path / f"log-{arguments[0]}")
        assert code == 0, text
        return text

    def infineg_here(*arguments: object) -> str:
        code, text = call(capsys, *map(str, arguments))
        assert code == 0, text
        return text

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.build.driver, "open_cluster", open_inline)
        assert "squares" in infineg_here("plan", config)
    assert not (data / "shards").exists(), "a plan writes nothing but the plan"
    assert "squares://0/0" in infineg_here("check", config, "--source", "squares")

    built = infineg("build", config)
    assert "committed squares round 1 span 0 part 0: " in built
    assert "committed generation 1" in built
    assert "nothing to do" in infineg_here("build", config)
    status = json.loads(infineg_here("status", data, "--json"))
    counts = status["counts"]
    assert counts["read"] == 348
    assert counts["read"] == counts["selected"] + counts["not_selected"] + sum(
        counts["rejected"].values()
    )
    assert sum(status["samples"].values()) == counts["selected"]
    assert "good." in infineg_here("verify", data)

    infineg("train", config)
    infineg_here("train", config)
    assert "nothing to do" in caplog.text
    infineg("evaluate", run)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["target"]["cat"]["fpr_at_tpr95"]["generated"]["n"] > 0
    assert (run / "report.html").stat().st_size > 10_000

    cat, text = tmp_path / "cat.jpg", tmp_path / "text.jpg"
    cat.write_bytes(first_samples(CATS, 1)[0].image)
    text.write_text("no picture")
    lines = infineg("predict", run, cat, text, "--json").splitlines()
    of_cat, of_text = (json.loads(line) for line in lines if line.startswith("{"))
    assert set(of_cat) == {
        "path", "label", "logits", "probabilities", "thresholds", "prior", "one_in", "nearest",
    }  # fmt: skip
    assert of_text == {"path": str(text), "error": "no usable image: unreadable"}
    assert re.search(r"cat\.jpg\t(cat)?\tcat \d", infineg_here("predict", run, cat))
    code, output = call(capsys, "predict", str(run), str(text))
    assert (code, "none of 1 files is an image that can be read" in output) == (1, True)
