"""Sources of tests, which every process of a build finds as those of the project."""

from pathlib import Path

# Python imports it in every process, the workers of Ray included.
_SITE = "import pipeline.sources.kinds\npipeline.sources.kinds.__path__.append({folder!r})\n"


def write_plug_in(folder: Path, kind: str, text: str) -> str:
    """Writes the module of a kind; returns what PYTHONPATH must be."""
    folder.mkdir()
    (folder / f"{kind}.py").write_text(text)
    (folder / "sitecustomize.py").write_text(_SITE.format(folder=str(folder)))
    return str(folder)
