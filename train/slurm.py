"""Processes that `srun infineg train CONFIG` started, a task each, without torchrun between.

Variables of srun(1), "Output environment variables".
"""

import shutil
import subprocess
from collections.abc import MutableMapping

from pipeline.errors import ConfigError


def use_slurm_environment(environ: MutableMapping[str, str]) -> None:
    """Sets what torch.distributed reads where a step of several tasks is all that there is.

    Raises ConfigError where the first node cannot be told.
    """
    if "WORLD_SIZE" in environ or int(environ.get("SLURM_STEP_NUM_TASKS", "1")) == 1:
        return
    job, step = int(environ["SLURM_JOB_ID"]), int(environ.get("SLURM_STEP_ID", "0"))
    environ.setdefault("MASTER_ADDR", _first_node(environ["SLURM_STEP_NODELIST"]))
    # A port that all tasks come to by themselves, and that other jobs and steps have not.
    environ.setdefault("MASTER_PORT", str(20_000 + (job * 16 + step) % 20_000))
    environ["RANK"] = environ["SLURM_PROCID"]
    environ["LOCAL_RANK"] = environ["SLURM_LOCALID"]
    environ["WORLD_SIZE"] = environ["SLURM_STEP_NUM_TASKS"]


def _first_node(nodes: str) -> str:
    """Of a list such as `node[3-5,8],other`."""
    if "[" not in nodes:
        return nodes.partition(",")[0]
    scontrol = shutil.which("scontrol")
    if scontrol is None:
        raise ConfigError(
            f"SLURM_STEP_NODELIST is {nodes}, and scontrol, which tells its first node, is not on "
            "the PATH; set MASTER_ADDR to that node"
        )
    answer = subprocess.run(
        [scontrol, "show", "hostnames", nodes], capture_output=True, text=True, check=True
    )
    return answer.stdout.split()[0]
