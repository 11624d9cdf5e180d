"""What the pages say exists: commands, targets, files, links, names, settings."""

import ast
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
import yaml

from train.cli import app

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")),
    ROOT / "infra" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
# Words of a page that stand for a value of some form.
_STANDS_FOR = {"COMMAND": "demo", "N": "1", "PLATFORM": "slurm"}
README = ROOT / "README.md"
GLOSSARY = ROOT / "docs" / "glossary.md"
GENERATOR = runpy.run_path(str(ROOT / "docs" / "make_reference.py"))
FOLDERS = "pipeline|train|infineg|tests|docs|infra|configs"


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


def by_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", PAGES, ids=by_name)


def test_reference_is_what_the_models_and_commands_say() -> None:
    page = ROOT / "docs" / "reference.md"
    assert page.read_text() == GENERATOR["render"](), "make docs"


@every_page
def test_every_infineg_command_parses(page: Path) -> None:
    for code in code_of(page):
        for words in infineg_commands(code):
            try:
                parse(words)
            except Exception as error:
                raise AssertionError(f"infineg {' '.join(words)}: {error!r}") from error


def test_commands_are_found_and_wrong_ones_refused() -> None:
    line = "torchrun --nproc-per-node 8 --no-python infineg train RUN [--resume] && infineg demo\n"
    assert list(infineg_commands(Code(line, ""))) == [["train", "RUN", "--resume"], ["demo"]]
    found = [words for page in PAGES for code in code_of(page) for words in infineg_commands(code)]
    assert {words[0] for words in found} >= {"build", "train", "mine", "launch", "predict"}
    parse(["--log-format", "json", "--debug", "build", "CONFIG"])
    for wrong in (["build", "CONFIG", "--no-such-option"], ["--no-such-option", "build", "CONFIG"]):
        with pytest.raises(Exception, match="no-such-option"):
            parse(wrong)


@every_page
def test_every_make_target_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = "\n".join(code.text for code in code_of(page))
    assert set(re.findall(r"(?<![\w-])make ([a-z][a-z-]*)", code)) <= targets


@every_page
def test_every_path_exists(page: Path) -> None:
    code = "\n".join(code.text for code in code_of(page))
    paths = set(re.findall(rf"(?<![\w./:-])(?:{FOLDERS})/[\w./-]*", code))
    assert [path for path in sorted(paths) if not (ROOT / path.rstrip(".")).exists()] == []


@every_page
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors_of(file), target


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=by_name)
def test_page_of_the_site_links_to_nothing_outside_it(page: Path) -> None:
    assert "](../" not in page.read_text()
    assert f'"{page.name}"' in (ROOT / "zensical.toml").read_text(), "not in `nav`"


@every_page
def test_every_yaml_block_is_a_config_or_a_part_of_one(page: Path) -> None:
    for code in code_of(page):
        if code.language == "yaml":
            data: dict[str, Any] = yaml.safe_load(code.text)
            positives = [{"name": "cats", "kind": "image_folder"}]
            least = {"target": {"name": "cat"}, "positives": positives, "output": {"path": "out"}}
            config = GENERATOR["Config"].model_validate({**least, **data})
            GENERATOR["TrainConfig"].model_validate({"run": "run", **config.train})


@every_page
def test_every_python_block_compiles_and_its_imports_work(
    page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PHOTOS", "photos")
    for code in code_of(page):
        if code.language == "python":
            ast.parse(code.text)
            if code.text.startswith(("from ", "import ")):
                exec(code.text, {})


def test_readme_is_short_and_names_every_room() -> None:
    text = README.read_text()
    assert len(text.splitlines()) < 150
    for package in ("pipeline", "train"):
        (row,) = re.findall(rf"^\| `{package}/` \|.*$", text, re.MULTILINE)
        folders = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
        assert folders - set(re.findall(r"`(\w+)`", row)) == set()


def test_new_names_of_the_glossary_are_in_the_code() -> None:
    source = "\n".join(
        path.read_text()
        for package in ("pipeline", "train")
        for path in (ROOT / package).rglob("*.py")
    )
    (table,) = re.findall(r"## Names that changed(.*?)\n## ", GLOSSARY.read_text(), re.DOTALL)
    names = [
        name
        for new in re.findall(r"\| ([^|]+) \|$", table, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", new)
    ]
    assert len(names) > 20
    assert [name for name in names if not re.search(rf"\b{name}\b", source)] == []
