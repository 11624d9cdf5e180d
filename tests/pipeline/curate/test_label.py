"""Labelling below its page: rounds, the log, what becomes of verdicts, and HTTP."""

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline import storage
from pipeline.config.schema import Config
from pipeline.curate.label import log
from pipeline.curate.label.pictures import read_from_sources
from pipeline.curate.label.session import LabelSession
from pipeline.curate.takedown import take_down
from pipeline.curate.verify import verify_dataset
from pipeline.dataset import Dataset
from pipeline.dataset.keys import unit_hash
from pipeline.dataset.lease import hold_lease
from pipeline.dataset.metadata import TakenDown
from pipeline.errors import ConfigError, InfinegError
from support.builds import build_inline
from support.label import (
    Labelled,
    ServedLabels,
    copy_labelled,
    is_cat,
    rate_round,
    serve_labels,
)
from support.processes import call_infineg
from support.review import Served


def ledger_rows(labelled: Labelled, number: int | None = None) -> dict[str, dict[str, Any]]:
    """All rows of a generation, by key."""
    dataset = Dataset(labelled.config.output.path)
    generation = dataset.read_generation(number)
    tables = [
        dataset.read_table(ledger.path)
        for source in generation.sources
        if source.role == "negative"
        for ledger in source.ledger
    ]
    return {row["key"]: row for row in pa.concat_tables(tables).to_pylist()}


def events_of(labelled: Labelled) -> list[log.Event]:
    return log.read_events(Dataset(labelled.config.output.path), "cat")


# Rounds


def test_a_round_follows_from_candidates_verdicts_and_seed(
    labelled_once: Labelled, tmp_path: Path
) -> None:
    rounds = []
    for number in range(2):
        session = copy_labelled(labelled_once, tmp_path / str(number)).session(f"rater{number}")
        shown = []
        for _ in range(2):
            shown.append([each["id"] for each in rate_round(session)])
            state = session.next_round()
        shown.append([each["id"] for each in state["pictures"]])
        rounds.append((shown, session.learned()["now"]["model"]))
    assert rounds[0] == rounds[1]
    shown = rounds[0][0]
    assert 40 <= len(shown[0]) <= 75
    assert len({each for own in shown for each in own}) == sum(map(len, shown)), "none twice"
    other = copy_labelled(labelled_once, tmp_path / "other").session()
    other.decide({shown[0][0]: "positive", shown[0][1]: "negative"})
    assert [each["id"] for each in other.next_round()["pictures"]] != shown[1]


def test_what_was_drawn_and_not_rated_comes_again(labelled: Labelled) -> None:
    session = labelled.session()
    first = session.state()["pictures"]
    random = {each["id"] for each in first if each["why"] == "random"}
    picked = {each["id"] for each in first} - random
    session.decide(dict.fromkeys(picked, "negative"))
    second = {each["id"] for each in session.next_round()["pictures"]}
    assert random
    assert random <= second
    assert not picked & second


def test_two_people_at_once_get_the_same_only_of_what_is_drawn(labelled: Labelled) -> None:
    anna, ben = labelled.session("anna"), labelled.session("ben")
    drawn = [
        {each["id"] for each in session.state()["pictures"] if each["why"] == "random"}
        for session in (anna, ben)
    ]
    rounds = [{each["id"] for each in rate_round(session)} for session in (anna, ben)]
    assert drawn[0] <= rounds[0] & rounds[1] <= drawn[0] | drawn[1]
    anna.refresh()
    assert sum(anna.learned()["counts"].values()) == len(rounds[0] | rounds[1])
    shown = {each["id"] for each in anna.next_round()["pictures"]}
    assert not shown & (rounds[0] | rounds[1])
    ben.apply()
    anna.refresh()
    assert anna.state()["generation"] == 2, "as on a reload of her page"


def test_pictures_come_from_shards_quarantine_source_and_pool(labelled: Labelled) -> None:
    session = labelled.session()
    pictures = session.state()["pictures"]
    kinds = {each["has_preview"] for each in pictures}
    assert kinds == {True, False}
    for each in pictures:
        assert session.picture(each["id"])[:2] == b"\xff\xd8"
    unread = next(each for each in pictures if each["has_preview"])
    assert session.preview(unread["id"])[:2] == b"\xff\xd8"
    rows = ledger_rows(labelled)
    assert {rows[each["key"]]["split"] for each in pictures} == {"train"}
    assert any(rows[each["key"]]["reject_reason"] for each in pictures), "suspects are rated, too"
    assert any(not rows[each["key"]]["selected"] for each in pictures)


def test_a_head_learns_meanwhile(labelled: Labelled) -> None:
    session = labelled.session()
    before = session.learned()["now"]
    rate_round(session)
    deadline = time.monotonic() + 30
    while (learned := session.learned())["is_learning"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert learned["now"]["model"] != before["model"]
    assert learned["now"]["num_rated"] == len(session.state()["pictures"])
    assert learned["before"] == before
    changed = learned["changed"]
    moved = changed["joined"]["num"] - changed["left"]["num"]
    assert learned["now"]["num_called"] - before["num_called"] == moved


def test_a_data_set_without_embeddings_is_refused(labelled: Labelled) -> None:
    config = labelled.config.model_copy(update={"pool": None})
    # Pictures in shards have theirs.
    without = LabelSession(config, "cat", "anna").state()
    assert without["num_without"] > 0
    rows = ledger_rows(labelled)
    shown = [rows[each["key"]] for each in without["pictures"]]
    assert all(row["selected"] or row["reject_reason"] for row in shown)
    with pytest.raises(ConfigError, match="--target dog: the data set has cat"):
        LabelSession(labelled.config, "dog", "anna")


# The next generation


def test_verdicts_become_a_generation_with_their_probabilities(labelled: Labelled) -> None:
    session = labelled.session()
    pictures = rate_round(session)
    session.next_round()
    pictures += rate_round(session)
    before = ledger_rows(labelled)
    unsure = next(each for each in pictures if not is_cat(each))
    session.decide({unsure["id"]: "unsure"})
    standing = log.standing_of(events_of(labelled))
    random = [each for each in pictures if each["id"] not in standing.picked]
    assert len(random) > 5
    assert any(before[each["key"]]["selected"] and is_cat(each) for each in pictures)
    generation, num_applied = session.apply()
    assert (generation.number, generation.parent, generation.made_by) == (2, 1, "label")
    assert num_applied > 30
    assert verify_dataset(labelled.config.output.path).problems == []
    after = ledger_rows(labelled)
    rated = {each["key"]: each for each in pictures if each is not unsure}
    for key, row in after.items():
        if key not in rated:
            assert row == before[key], "nobody has said anything of it"
            continue
        probability = row["inclusion_probability"]
        if is_cat(rated[key]):
            assert (row["label"], row["label_state"]) == ("cat", "verified_present")
            assert (probability, row["selected"]) == (1, True)
            continue
        assert (row["label"], row["label_state"]) == ("", "verified_absent")
        content_hash = row["content_hash"]
        own = 1.0 if content_hash in standing.picked else standing.drawn[content_hash]
        assert probability == max(np.float32(own), before[key]["inclusion_probability"] or 0)
        assert row["selected"] == (unit_hash(0, content_hash) < probability)
        assert row["selected"], "it was drawn by the same random number"
    with pytest.raises(ConfigError, match="has all verdicts"):
        session.apply()


def test_verdicts_can_be_changed_and_applied_again(labelled: Labelled) -> None:
    session = labelled.session()
    cat = next(each for each in rate_round(session) if is_cat(each))
    session.apply()
    assert ledger_rows(labelled)[cat["key"]]["label"] == "cat"
    session.decide({cat["id"]: "negative"})
    generation, num_applied = session.apply()
    assert (generation.number, num_applied) == (3, 1)
    row = ledger_rows(labelled)[cat["key"]]
    assert (row["label"], row["label_state"]) == ("", "verified_absent")
    assert verify_dataset(labelled.config.output.path).problems == []


def test_an_applied_verdict_can_be_taken_back(labelled: Labelled) -> None:
    session = labelled.session()
    pictures = rate_round(session)
    before = ledger_rows(labelled)
    session.apply()
    cats = [each for each in pictures if is_cat(each)]
    quarantined = next(each for each in cats if before[each["key"]]["reject_reason"])
    selected = next(each for each in cats if before[each["key"]]["selected"])
    session.decide({quarantined["id"]: None, selected["id"]: "unsure"})
    generation, num_applied = session.apply()
    assert (generation.number, num_applied) == (3, 2)
    after = ledger_rows(labelled)
    for each in (quarantined, selected):
        assert after[each["key"]] == before[each["key"]]
    assert verify_dataset(labelled.config.output.path).problems == []
    with pytest.raises(ConfigError, match="has all verdicts"):
        session.apply()


def test_verdicts_outlive_a_build_that_draws_anew(labelled: Labelled) -> None:
    session = labelled.session()
    pictures = rate_round(session)
    session.apply()
    assert build_inline(labelled.config).number == 2, "nothing is new for a build"
    selection = {**labelled.config.selection.model_dump(), "budget": {"selected": 90}}
    config = Config.model_validate({**labelled.config.model_dump(), "selection": selection})
    generation = build_inline(config)
    assert generation.made_by == "build"
    again = LabelSession(config, "cat", "anna")
    again.apply()
    rows = ledger_rows(labelled)
    for each in pictures:
        assert rows[each["key"]]["label"] == ("cat" if is_cat(each) else "")
        assert rows[each["key"]]["label_state"].startswith("verified")
    assert verify_dataset(config.output.path).problems == []


def test_applying_waits_for_a_build(labelled: Labelled) -> None:
    session = labelled.session()
    rate_round(session)
    with (
        hold_lease(labelled.config.output.path),
        pytest.raises(InfinegError, match=f"is being built by .*process {os.getpid()}"),
    ):
        session.apply()
    assert session.apply()[0].number == 2


def test_a_source_that_has_changed_is_named(labelled_once: Labelled) -> None:
    config = labelled_once.config
    rows = [row for row in ledger_rows(labelled_once).values() if row["source"] == "squares"][:3]
    read = dict(read_from_sources(config, rows))
    assert list(read) == [row["content_hash"] for row in rows]
    with pytest.raises(InfinegError, match="source 'squares': squares://0/1 has changed since"):
        list(read_from_sources(config, [rows[0], {**rows[1], "content_hash": "0" * 64}]))
    with pytest.raises(InfinegError, match="partition 9 is no longer listed"):
        list(read_from_sources(config, [{**rows[0], "partition": "9"}]))
    without = config.model_copy(update={"sources": config.sources[:1]})
    with pytest.raises(ConfigError, match="source 'squares' is in the data set and not in"):
        list(read_from_sources(without, rows))


def test_a_purge_forgets_what_was_said_of_a_picture(labelled: Labelled) -> None:
    session = labelled.session()
    picture = next(each for each in rate_round(session) if is_cat(each))
    path = Path(labelled.config.output.path) / "reviews/cat/anna.jsonl"
    num_events = len(events_of(labelled))
    assert picture["id"] in path.read_text()
    root = labelled.config.output.path
    take_down(root, TakenDown(keys=frozenset([picture["key"]])), purge=True)
    assert picture["id"] not in path.read_text()
    assert len(events_of(labelled)) == num_events - 1
    session.apply()
    assert ledger_rows(labelled)[picture["key"]]["reject_reason"] == "taken_down"


# The log


def test_a_verdict_says_who_when_by_which_model_and_how_it_came(labelled: Labelled) -> None:
    session = labelled.session("Zoë O'Hara/../../x")
    state = session.state()
    model = state["learned"]["now"]["model"]
    rate_round(session)
    round_, *verdicts = events_of(labelled)
    assert isinstance(round_, log.RoundEvent)
    assert {event.rater for event in verdicts} == {"Zoë O'Hara/../../x"}
    assert {event.model for event in (round_, *verdicts)} == {model}
    assert {event.round for event in verdicts} == {1}
    for event in verdicts:
        assert isinstance(event, log.VerdictEvent)
        if event.how == "picked":
            assert event.content_hash in round_.picked
            assert event.probability == 1
        else:
            assert event.probability == round_.drawn[event.content_hash] < 1
    files = list((Path(labelled.config.output.path) / "reviews").rglob("*.jsonl"))
    assert [file.parent.name for file in files] == ["cat"], "a name is no path"


def test_a_verdict_can_be_taken_back(labelled: Labelled) -> None:
    session = labelled.session()
    first, second = session.state()["pictures"][:2]
    session.decide({first["id"]: "positive", second["id"]: "negative"})
    session.decide({first["id"]: None})
    again = labelled.session()
    assert [each["verdict"] for each in again.state()["pictures"][:2]] == [None, "negative"]
    assert len(events_of(labelled)) == 4, "what was said stays in the log"
    assert again.learned()["counts"] == {"negative": 1}


def test_two_people_are_merged_and_their_disagreement_is_shown(
    labelled_once: Labelled, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    anna = copy_labelled(labelled_once, tmp_path / "anna")
    ben = copy_labelled(labelled_once, tmp_path / "ben")
    pictures = rate_round(anna.session("anna"))
    own = ben.session("ben")
    assert rate_round(own) == pictures, "the first round is the same for both"
    disputed, agreed = [each for each in pictures if is_cat(each)][:2]
    own.decide({disputed["id"]: "negative"})
    file = tmp_path / "ben.jsonl"
    code, output, _ = call_infineg(capsys, "label", ben.path, "--export", file)
    assert (code, "events of ben" in output) == (0, True)
    for expected in ("new events", "0 new events"):
        code, output, _ = call_infineg(capsys, "label", anna.path, "--merge", file)
        assert code == 0
        assert expected in output
        assert disputed["key"] in output
        assert "anna: " in output
        assert agreed["key"] not in output
    learned = anna.session("anna").learned()
    assert [each["key"] for each in learned["disagreements"]] == [disputed["key"]]
    before = ledger_rows(anna)
    code, output, _ = call_infineg(capsys, "label", anna.path, "--apply")
    assert (code, "committed generation 2" in output) == (0, True)
    after = ledger_rows(anna)
    assert after[disputed["key"]] == before[disputed["key"]]
    assert after[agreed["key"]]["label"] == "cat"
    # They settle it.
    anna.session("ben").decide({disputed["id"]: "positive"})
    assert anna.session("anna").apply()[1] == 1


def test_a_damaged_log_is_named_with_its_line(labelled: Labelled) -> None:
    labelled.session()
    path = Path(labelled.config.output.path) / "reviews/cat/anna.jsonl"
    whole = path.read_bytes()
    round_ = json.loads(whole)
    for line in (
        {"event": "verdict"},
        {**round_, "drawn": {"0" * 64: 0.0}},
        {**round_, "drawn": {"../x": 0.5}},
        {**round_, "time": "2026-01-01T00:00:00"},
        {**round_, "rater": ""},
    ):
        path.write_bytes(whole + json.dumps(line).encode() + b"\n")
        with pytest.raises(InfinegError, match=r"anna\.jsonl, line 2: no event of a label log"):
            labelled.session()


def test_no_answered_verdict_is_lost_when_the_server_is_killed(
    labelled: Labelled, tmp_path: Path
) -> None:
    with serve_labels(labelled, tmp_path / "log") as served:
        pictures = served.get("api/state")["pictures"]
        token = served.token
        answered: list[str] = []

        def rate() -> None:
            for each in pictures:
                body = {"verdicts": {each["id"]: "negative"}}
                try:
                    status, _, _ = served.request("api/verdicts", body, X_Page_Token=token)
                except OSError:
                    return
                if status == 200:
                    answered.append(each["id"])

        person = threading.Thread(target=rate)
        person.start()
        while len(answered) < 8:
            time.sleep(0.001)
        served.process.kill()
        served.process.wait(timeout=10)
        person.join()
    assert 8 <= len(answered) < len(pictures), "in the middle of rating"
    with serve_labels(labelled, tmp_path / "log") as served:
        state = served.get("api/state")
        assert [each["id"] for each in state["pictures"]] == [each["id"] for each in pictures]
        kept = {each["id"] for each in state["pictures"] if each["verdict"]}
    assert set(answered) <= kept
    assert len(kept) <= len(answered) + 1, "at most the one that was on its way"


# Over HTTP


@pytest.fixture(scope="module")
def served(
    labelled_once: Labelled, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServedLabels]:
    folder = tmp_path_factory.mktemp("served")
    with serve_labels(copy_labelled(labelled_once, folder), folder / "log") as server:
        yield server


def test_changes_need_the_token_of_the_page(served: ServedLabels) -> None:
    key = served.get("api/state")["pictures"][0]["id"]
    for path, body in (
        ("api/verdicts", {"verdicts": {key: "negative"}}), ("api/next", {}), ("api/apply", {}),
    ):  # fmt: skip
        assert served.request(path, body)[0] == 403
        headers = {"X_Page_Token": served.token, "Origin": "https://evil.example"}
        assert served.request(path, body, **headers)[0] == 403
    stranger = Served(f"{served.origin}/")
    for path in ("", "api/state", f"pictures/{key}", "static/page.js"):
        status, content, _ = stranger.request(path)
        assert status == 403
        assert json.loads(content)["detail"].startswith("open the address that `infineg label`")
    assert served.get("api/state")["round"] == 1


@pytest.mark.parametrize(
    "path", ["pictures/..%2f..%2fdataset.json", "previews/0", "static/..%2fapp.py", "docs"]
)
def test_only_listed_files_are_served(served: ServedLabels, path: str) -> None:
    status, _, headers = served.request(path)
    assert status == 404
    assert "default-src 'none'" in headers["content-security-policy"]


@pytest.mark.parametrize(
    "body", [{"verdicts": {}}, {"verdicts": {"k": "drop"}}, {"verdicts": {"k": "skip"}}, {}, []]
)
def test_invalid_verdicts_are_refused(served: ServedLabels, body: Any) -> None:
    assert served.request("api/verdicts", body, X_Page_Token=served.token)[0] in (404, 422)


def test_beyond_this_machine_the_secret_address_protects(
    labelled: Labelled, tmp_path: Path
) -> None:
    with serve_labels(labelled, tmp_path / "log", "--host", "0.0.0.0") as served:
        own = Served(served.url.replace("0.0.0.0", "127.0.0.1"))
        assert own.request("", Host="my-desk.local:8002")[0] == 200
        stranger = Served(f"{own.origin}/")
        assert stranger.request("api/state", Host="my-desk.local:8002")[0] == 403


def test_a_data_set_on_an_object_store_is_labelled_there(
    labelled_once: Labelled, s3_root: str
) -> None:
    root = Path(labelled_once.config.output.path)
    for name in storage.list_files(str(root)):
        storage.write_atomic(storage.join(s3_root, name), (root / name).read_bytes())
    output = labelled_once.config.output.model_copy(update={"path": s3_root})
    config = labelled_once.config.model_copy(update={"output": output})
    session = LabelSession(config, "cat", "anna")
    pictures = rate_round(session)
    session.decide({pictures[0]["id"]: None})
    again = LabelSession(config, "cat", "anna")
    assert [each["verdict"] is None for each in again.state()["pictures"]].count(True) == 1
    assert again.picture(pictures[0]["id"])[:2] == b"\xff\xd8"
    assert again.apply()[0].number == 2
    assert verify_dataset(s3_root).problems == []
