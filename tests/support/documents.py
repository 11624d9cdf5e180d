"""The pages of the project, the code that they show, and the commands in it."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import typer

from train.cli import app

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")),
    ROOT / "infra" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
# Words of a page that stand for a value of some form.
_STANDS_FOR = {"COMMAND": "demo", "N": "1", "PLATFORM": "slurm"}


class Code(NamedTuple):
    """A fenced block with its language, or a span with None."""

    text: str
    language: str | None


def code_of(page: Path) -> list[Code]:
    """Every block and span of a page, in no order."""
    text = page.read_text()
    fence = r"^```(\w*)\n(.*?)^```$"
    blocks = [Code(body, name) for name, body in re.findall(fence, text, re.DOTALL | re.MULTILINE)]
    prose = re.sub(fence, "", text, flags=re.DOTALL | re.MULTILINE)
    return [*blocks, *(Code(span, None) for span in re.findall(r"`([^`\n]+)`", prose))]


def infineg_commands(code: Code) -> Iterator[list[str]]:
    """The words after each `infineg` that starts a command in a shell's block, or a span."""
    if code.language not in (None, "", "sh"):
        return
    for line in code.text.replace("\\\n", " ").splitlines():
        if not re.search(r"(?<![\w./-])(infineg|-m infineg) [a-z-]", line):
            continue
        lexer = shlex.shlex(line.strip(), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] | None = None
        before = ""
        for word in [*lexer, ";"]:
            if set(word) <= set(";&|"):
                if words:
                    yield words
                words = None
            elif words is not None:
                bare = word.strip("[]")  # optional on a page
                words.append(_STANDS_FOR.get(bare, bare))
            elif word == "infineg" and before not in ("from", "generic"):  # import, Secret
                words = []
            before = word


def parse(words: list[str]) -> None:
    """Raises what the command line raises for wrong use. A name without arguments must exist."""
    group: Any = typer.main.get_command(app)
    is_flag = {name: each.is_flag for each in group.params for name in each.opts}
    while words[0].startswith("-"):
        name, separator, _ = words[0].partition("=")
        words = words[1 if is_flag[name] or separator else 2 :]
        if not words:
            return  # such as --version
    command = group.commands[words[0]]
    if len(words) > 1:
        command.make_context(words[0], words[1:])


def anchors_of(page: Path) -> set[str]:
    """What a link may name after #."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
