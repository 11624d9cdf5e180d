"""What the pages say exists: commands, targets, files, links, names, settings."""

import ast
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.documents import PAGES, ROOT, Code, anchors_of, code_of, infineg_commands, parse

README = ROOT / "README.md"
GLOSSARY = ROOT / "docs" / "glossary.md"
GENERATOR = runpy.run_path(str(ROOT / "docs" / "make_reference.py"))
FOLDERS = "pipeline|train|infineg|tests|docs|infra|configs"


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
