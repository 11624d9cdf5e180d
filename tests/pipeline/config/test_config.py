"""Mistakes in a config are named: the field, the value seen, what is allowed."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config.loading import load_config
from pipeline.config.schema import Config, SourceEntry, fingerprint
from pipeline.errors import ConfigError
from pipeline.sources import open_entry, open_source
from pipeline.sources.survey import survey
from train.config import load_train_config

MINIMAL: dict[str, Any] = {
    "target": {"name": "cat"},
    "positives": [{"name": "cats", "kind": "image_folder", "params": {"path": "cats/"}}],
    "sources": [{"name": "squares", "kind": "squares"}],
    "output": {"path": "data/cats"},
}


def write(path: Path, **sections: Any) -> Path:
    path.write_text(yaml.safe_dump({**MINIMAL, **sections}))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"selection": {"bta": 1}}, r"selection\.bta: Extra inputs are not permitted, got 1"),
        ({"selection": {"beta": 1000}}, r"selection\.beta: .*less than or equal to 100, got 1000"),
        ({"selection": {"beta": -1}}, r"selection\.beta: .*greater than or equal to 0, got -1"),
        ({"selection": {"budget": "many"}}, r"budget\.selected: .*valid integer.*got 'many'"),
        ({"selection": {"min_probability": 0}}, r"selection\.min_probability: .*greater than 0"),
        ({"encoder": {"layer": "first"}}, r"encoder\.layer: .*'penultimate', got 'first'"),
        ({"output": {}}, r"output\.path: Field required"),
        ({"split": {"val": 0.5, "test": 0.5}}, r"split: val \+ test is 1, must be under 1"),
        ({"targets": [{"name": "dog"}]}, r"give either `target` or `targets`"),
        ({"positives": []}, r"positives: .*at least 1"),
        ({"target": {"name": "a cat"}}, r"targets\.0\.name: .*pattern.*got 'a cat'"),
        ({"sources": [{"name": "a-b", "kind": "squares"}]}, r"sources\.0\.name: .*got 'a-b'"),
        ({"sources": [{"name": "a", "kind": "../squares"}]}, r"sources\.0\.kind: .*got '../squ"),
        ({"sources": [{"name": "cats", "kind": "squares"}]}, r"names must be unique.*: cats"),
        ({"sources": [{"name": "a", "kind": "squares", "target": "cat"}]}, r"for positives only"),
        (
            {"positives": [{"name": "a", "kind": "squares", "target": "dog"}]},
            r"positives a: target 'dog' is none of \('cat',\)",
        ),
    ],
)  # fmt: skip
def test_mistake_is_named(tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(write(tmp_path / "config.yaml", **sections))
    assert "config.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "not YAML"), ("- a", "expected a mapping, got list"), ("", "got NoneType")],
)
def test_file_that_is_no_config_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"bad\.yaml: .*{message}"):
        load_config(tmp_path / "bad.yaml")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.yaml: No such file"):
        load_config(tmp_path / "no.yaml")


def test_override_reaches_any_value(path: Path) -> None:
    config = load_config(
        path,
        [
            "selection.beta=0",
            "sources.squares.weight=0.5",  # by name
            "positives.0.params.path=other/",  # by position
            "sources.squares.params.seed=3",
            "train.mode=head",
            "selection.budget=12_000",
        ],
    )
    assert config.selection.beta == 0
    assert config.sources[0].weight == 0.5
    assert config.sources[0].params == {"seed": 3}
    assert config.positives[0].params == {"path": "other/"}
    assert config.train == {"mode": "head"}
    assert config.selection.budget.selected == 12_000


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("selection.beta", r"--set selection\.beta: expected FIELD=VALUE"),
        ("selection.bta=1", r"selection\.bta: Extra inputs"),
        ("sources.circles.weight=1", r"--set sources\.circles.*'circles' is none of \['squares'\]"),
        ("output.path.x=1", r"'path' is 'data/cats' and has no fields"),
        ("selection.beta=[", r"--set selection\.beta=\["),
    ],
)
def test_bad_override_is_named(path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(path, [override])


def test_variables_are_filled_from_the_config_before_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HERE", "/environment")
    monkeypatch.setenv("THERE", "/elsewhere")
    path = write(
        tmp_path / "config.yaml",
        variables={"HERE": "/config"},
        output={"path": "${HERE}/${THERE}/data"},
    )
    assert load_config(path).output.path == "/config//elsewhere/data"
    assert load_config(path, ["variables.HERE=/set"]).output.path == "/set//elsewhere/data"


def test_missing_variable_is_named_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PHOTOS", raising=False)
    path = write(tmp_path / "config.yaml", output={"path": "${PHOTOS}/cats"})
    message = r"output: path: \$\{PHOTOS\} is not set; export PHOTOS=.*--set variables\.PHOTOS="
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_endless_positives_are_refused() -> None:
    config = Config.model_validate(MINIMAL)
    entry = SourceEntry(name="cats", kind="shapes")
    config = config.model_copy(update={"positives": (entry,)})
    with pytest.raises(ConfigError, match="positives cats: endless; set `max_candidates`"):
        survey(open_source("shapes", {}), entry, config)


@pytest.mark.parametrize(
    ("kind", "params"),
    [("imagenet", {"path": "set"}), ("open_images", {"path": "set", "target_policy": "positive"}),
     ("webdataset", {"urls": "a.tar", "class_field": "cls", "target_labels": ["cat"]}),
     ("parquet", {"urls": "set", "target_labels": ["cat"]}),
     ("huggingface", {"path": "set", "target_labels": ["cat"]})],
)  # fmt: skip
def test_positives_with_other_classes_among_them_are_refused(
    kind: str, params: dict[str, Any]
) -> None:
    entry = SourceEntry(name="cats", kind=kind, params=params)
    open_entry(entry, "negative")
    with pytest.raises(ConfigError, match=r"positives cats: with `params\.target_policy`.*to only"):
        open_entry(entry, "positive")
    only = entry.model_copy(update={"params": {**params, "target_policy": "only"}})
    open_entry(only, "positive")
    if "target_labels" in params:
        del params["target_labels"]
        open_entry(entry.model_copy(update={"params": params}), "positive")


def test_wrong_params_are_told_with_the_name_of_their_entry() -> None:
    entry = SourceEntry(name="far_things", kind="imagenet", params={"pth": "set"})
    with pytest.raises(ConfigError, match=r"^far_things: kind imagenet: params\.path: Field"):
        open_entry(entry, "negative")


def test_how_to_run_enters_no_fingerprint_and_what_comes_out_does() -> None:
    def fingerprints(**sections: Any) -> tuple[str, str]:
        config = Config.model_validate({**MINIMAL, **sections})
        entry = config.sources[0]
        return fingerprint(config.row_inputs()), fingerprint(config.source_inputs(entry))

    rows, source = fingerprints()
    moved = {"path": "elsewhere"}
    assert fingerprints(build={"workers": 9}, train={"seed": 1}, output=moved) == (rows, source)
    for section in (
        {"selection": {"beta": 1}}, {"selection": {"seed": 1}}, {"encoder": {"batch_size": 8}},
        {"split": {"val": 0.2}}, {"output": {"path": "data/cats", "jpeg_quality": 80}},
    ):  # fmt: skip
        assert fingerprints(**section)[0] != rows, section
    # A budget belongs to each source's plan: it can be another for the sources still to come.
    other_rows, other_source = fingerprints(selection={"budget": 7})
    assert other_rows == rows
    assert other_source != source
    tolerant = {"name": "squares", "kind": "squares", "max_reject_fraction": 0.9}
    assert fingerprints(sources=[tolerant]) == (rows, source)


def test_fingerprints_stay_those_of_data_sets_built_before() -> None:
    """Whatever fields come and go: another fingerprint would have all of it built anew.

    They were drawn by similarity, which is no longer the default.
    """
    config = Config.model_validate({**MINIMAL, "selection": {"mode": "similarity"}})
    inputs = config.row_inputs(), *map(config.source_inputs, config.entries)
    assert [fingerprint(each)[:12] for each in inputs] == [
        "a9a3c7347896", "48daba280fd4", "8c106c529b8b"
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["off", "'off'"])
def test_off_is_a_word_in_files_and_on_the_command_line(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "config.yaml")
    path.write_text(f"{path.read_text()}selection: {{quarantine: {text}}}\n")
    assert load_config(path).selection.quarantine == "off"
    path = write(tmp_path / "config.yaml")
    assert load_config(path, [f"selection.quarantine={text}"]).selection.quarantine == "off"


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", ".nan", "1e999"])
def test_number_that_is_not_finite_is_refused_in_every_field(path: Path, value: str) -> None:
    told = r"[:=].*(finite|greater than|less than)"
    for field in ("selection.beta", "sources.squares.weight", "build.stuck_after_s"):
        with pytest.raises(ConfigError, match=field.rpartition(".")[2] + told):
            load_config(path, [f"{field}={value}"])
    with pytest.raises(ConfigError, match=r"train\.learning_rate" + told):
        load_train_config(path, ["train.run=r", f"train.learning_rate={value}"])


def test_number_in_place_of_a_name_is_told_to_be_quoted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"targets\.0\.name: .*got 1000\.0; put it in quotes"):
        load_config(write(tmp_path / "config.yaml", target={"name": 1e3}))


@pytest.mark.parametrize("value", ["", " "])
def test_empty_variable_is_refused_with_its_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("PHOTOS", value)
    cats = {"name": "cats", "kind": "image_folder", "params": {"path": "${PHOTOS}/cats"}}
    path = write(tmp_path / "config.yaml", positives=[cats])
    message = r"positives: cats: params: path: \$\{PHOTOS\} is empty; export PHOTOS="
    with pytest.raises(ConfigError, match=message):
        load_config(path)
    assert load_config(path, ["variables.PHOTOS=/p"]).positives[0].params["path"] == "/p/cats"


@pytest.mark.parametrize("variables", [3, ["a"], "x", {"A": 3}])
def test_variables_of_another_form_are_refused(tmp_path: Path, variables: Any) -> None:
    with pytest.raises(ConfigError, match="variables"):
        load_config(write(tmp_path / "config.yaml", variables=variables))


def test_override_fills_a_section_without_content(tmp_path: Path) -> None:
    path = write(tmp_path / "config.yaml", train=None)
    assert load_config(path, ["train.mode=head"]).train == {"mode": "head"}


def test_refused_value_shows_no_secret(tmp_path: Path) -> None:
    sections = {
        "password": "hunter2",
        "output": {"path": ["https://me:hunter2@host/a?sig=hunter2"]},
    }
    with pytest.raises(ConfigError, match=r"output\.path: .*host/a") as caught:
        load_config(write(tmp_path / "config.yaml", **sections))
    assert "hunter2" not in str(caught.value)
