"""An X-or-everything-else classifier from endless negatives, as a library.

    from infineg import Detector, build, evaluate, load_config, train

    config = load_config("configs/photos.yaml", ["variables.PHOTOS=/data/photos"])
    build(config)                   # sources -> shards
    run = train(config)             # shards -> weights, calibration, threshold, report
    Detector.load(run)("cat.jpg")   # label and probabilities of an image

Each function does what the command of the same name does, with the same messages: an expected
failure is an `InfinegError`. The packages `pipeline` and `train`, which do the work, are internal.
Importing `infineg` imports neither PyTorch nor Ray; its functions do when they are called.
"""

import os
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pipeline.config.schema import Config
    from pipeline.dataset.metadata import Generation
    from pipeline.errors import ConfigError, InfinegError
    from train.predict.detector import Detector as Detector

    __version__: str

__all__ = [
    "ConfigError",
    "Detector",
    "InfinegError",
    "__version__",
    "build",
    "evaluate",
    "load_config",
    "train",
]


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> "Config":
    """Reads and checks a YAML config file.

        config = load_config("configs/demo.yaml", ["variables.OUT=/tmp/demo"])

    `overrides` are those of `--set`, such as `selection.beta=0`. Raises ConfigError that names the
    file, the field and what is allowed.
    """
    from pipeline.config.loading import load_config

    return load_config(path, _listed("overrides", overrides))


def build(
    config: "Config", *, sources: Sequence[str] = (), accept_changes: bool = False
) -> "Generation":
    """Brings the data set at `config.output.path` up to date and returns its generation.

        generation = build(config)
        print(generation.number, generation.counts.selected)

    Continues an interrupted build and reads only sources that the data set lacks; `sources` names
    the only ones to build. Raises InfinegError if files of a source have changed since they were
    read; with `accept_changes` that source is drawn anew. Runs on Ray: on this machine, or on the
    cluster at `build.address`.
    """
    from pipeline.build.driver import build

    generation, _ = build(
        _checked(config), only=_listed("sources", sources), accept_changes=accept_changes
    )
    return generation


def train(
    config: "Config",
    *,
    resume: bool = False,
    generation: int | Literal["latest"] | None = None,
    evaluate: bool = True,
) -> Path:
    """Trains on the built data set, evaluates, and returns the folder of the run, `train.run`.

        run = train(config)
        Detector.load(run)("cat.jpg")

    A finished run is returned as it is. `resume` continues an interrupted one from its last
    checkpoint; with a newer `generation` it continues on that one's rows. Under torchrun, each
    process calls this function, and the first of them evaluates. Without `evaluate`, the function
    of that name does so later.
    """
    from pipeline.config.loading import validate
    from train.config import TrainConfig
    from train.evaluate.run import evaluate_if_new
    from train.loop.trainer import train

    train_config = validate(TrainConfig, _checked(config).train, section="train")
    run = train(config, train_config, resume=resume, generation=generation)
    if evaluate and os.environ.get("RANK", "0") == "0":
        evaluate_if_new(run)
    return run


def evaluate(run: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Calibrates a finished run on val, measures it on test and returns the metrics.

        metrics = evaluate(run)
        metrics["target"]["cat"]["fpr_at_tpr95"]

    Also writes `metrics.json`, `predictions.parquet` and `report.html` into the run. `overrides`
    apply to the run's own config, such as `evaluate.alpha=0.001`.
    """
    from train.evaluate.run import evaluate_run

    return evaluate_run(run, overrides=_listed("overrides", overrides))


def _checked(config: object) -> "Config":
    from pipeline.config.schema import Config
    from pipeline.errors import ConfigError

    if not isinstance(config, Config):
        raise ConfigError(f"config is {config!r}; load_config(path) gives what is wanted here")
    return config


def _listed(name: str, values: Sequence[str]) -> Sequence[str]:
    """A string is a sequence of letters, and never meant as one."""
    from pipeline.errors import ConfigError

    if isinstance(values, str):
        raise ConfigError(f"{name} is the string {values!r}; a list is wanted, [{values!r}]")
    return values


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("infineg")
    if name == "Detector":
        from train.predict.detector import Detector

        return Detector
    if name in ("ConfigError", "InfinegError"):
        from pipeline import errors

        return getattr(errors, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


def _import_own(name: str) -> None:
    """Imports a package from beside this one, whatever else the path holds.

    The folder of the script comes first on the path, and a user's own `train.py` or `pipeline/` in
    it would be imported in place of ours.
    """
    spec = PathFinder.find_spec(name, [str(Path(__file__).parents[1])])
    assert spec is not None, f"{name} is part of this installation"
    assert spec.loader is not None, f"{name} is a package"
    before = sys.modules.get(name)
    if before is None:
        sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    elif os.path.realpath(before.__file__ or "") != os.path.realpath(spec.origin or ""):
        where = before.__file__ or list(before.__path__)
        raise ImportError(f"rename {where}: it hides the package {name!r} of infineg")


_import_own("pipeline")
_import_own("train")
