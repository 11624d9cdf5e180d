"""The review below its page: over HTTP, in the data set, and with several at once."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.curate.review import session as session_module
from pipeline.curate.review.server import serve_review as serve_here
from pipeline.curate.review.session import ReviewSession
from pipeline.curate.review.verdict_file import VerdictFile
from pipeline.curate.takedown import take_down
from pipeline.curate.verdicts import read_verdicts
from pipeline.curate.verify import verify_dataset
from pipeline.dataset import Dataset
from pipeline.dataset.lease import hold_lease
from pipeline.dataset.metadata import TakenDown
from pipeline.errors import ConfigError, InfinegError
from support.builds import copy_dataset
from support.processes import call_infineg, running_infineg, wait_until
from support.review import NUM_SUSPECTS, Served, serve_review


@pytest.fixture
def root(suspects: Path, tmp_path: Path) -> Path:
    return copy_dataset(suspects, tmp_path / "data")


@pytest.fixture(scope="module")
def served(suspects: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    with serve_review(copy_dataset(suspects, folder / "data"), folder / "log") as server:
        yield server


def keys_of(session: ReviewSession) -> list[str]:
    return [each["key"] for each in session.page(0)["suspects"]]


# Over HTTP


def test_suspects_come_most_similar_first_with_their_metadata(served: Served) -> None:
    page = served.get("api/page/0")
    similarities = [each["similarity"] for each in page["suspects"]]
    assert len(similarities) == page["progress"]["total"] >= NUM_SUSPECTS
    assert similarities == sorted(similarities, reverse=True)
    first = page["suspects"][0]
    assert (first["source"], first["label_state"]) == ("strays", "unknown")
    assert first["why"] == "as similar as positives are to each other"
    nearest = served.get(f"api/nearest/{first['key']}")
    cosines = [each["cosine"] for each in nearest]
    assert len(cosines) == 3
    assert cosines == sorted(cosines, reverse=True)
    for path in (f"suspects/{first['key']}", f"positives/{nearest[0]['content_hash']}"):
        status, content, headers = served.request(path)
        assert (status, content[:2], headers["content-type"]) == (200, b"\xff\xd8", "image/jpeg")


def test_changes_need_the_token_of_the_page_and_its_origin(served: Served) -> None:
    key = served.get("api/page/0")["suspects"][0]["key"]
    body, own = {"verdicts": {key: "drop"}}, served.origin
    for headers in (
        {},
        {"X_Page_Token": "guess"},
        {"X_Page_Token": served.token, "Origin": "https://evil.example"},
        {"X_Page_Token": served.token, "Origin": "null"},
        {"X_Page_Token": served.token, "Origin": own.replace("127.0.0.1", "localhost")},
    ):
        for path, sent in (("api/verdicts", body), ("api/apply", {})):
            assert served.request(path, sent, **headers)[0] == 403, headers
    assert served.get("api/page/0")["progress"]["decided"] == 0
    status, _, _ = served.request("api/verdicts", body, X_Page_Token=served.token, Origin=own)
    assert status == 200
    undo = {"verdicts": {key: None}}
    assert served.request("api/verdicts", undo, X_Page_Token=served.token)[0] == 200
    assert served.get("api/page/0")["progress"]["decided"] == 0


def test_nothing_is_shown_to_who_does_not_know_the_address(served: Served) -> None:
    secret = served.url.removeprefix(served.origin).strip("/")
    assert len(secret) > 40
    key = served.get("api/page/0")["suspects"][0]["key"]
    stranger = Served(f"{served.origin}/")
    for start in ("", "x/", f"{secret[:-1]}/", f"{secret}x/", "%E9/", f"{secret.swapcase()}/"):
        for path in ("", "api/page/0", f"suspects/{key}", "static/page.js", "nothing"):
            status, content, headers = stranger.request(start + path)
            assert status == 403, start + path
            assert json.loads(content)["detail"].startswith("open the address that")
            assert secret not in str(headers)
    body = {"verdicts": {key: "drop"}}
    assert stranger.request("api/verdicts", body, X_Page_Token=served.token)[0] == 403
    assert stranger.request(secret)[0] == 403, "without a slash, what is relative would be lost"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1:8001", ""])
def test_other_names_of_this_machine_are_refused(served: Served, host: str) -> None:
    for path in ("", "api/page/0", "static/page.js"):
        assert served.request(path, Host=host)[0] == 400
    assert served.request("", Host="localhost:9000")[0] == 200, "as with ssh -L"


@pytest.mark.parametrize(
    "path",
    [
        "suspects/..%2f..%2fdataset.json",
        "suspects/%2fetc%2fpasswd",
        "suspects/nobody",
        "positives/..%2freference.json",
        "positives/0",
        "api/nearest/nobody",
        "static/..%2fapp.py",
        "static/app.py",
        "docs",
        "openapi.json",
        "?target=dog",
    ],
)
def test_only_listed_files_are_served(served: Served, path: str) -> None:
    status, content, headers = served.request(path)
    assert status == 404, content
    assert b"root:" not in content
    assert "default-src 'none'" in headers["content-security-policy"]


@pytest.mark.parametrize(
    "body", [{"verdicts": {}}, {"verdicts": {"k": "maybe"}}, {"verdicts": {"k": "drop"}}, {}, []]
)
def test_invalid_verdicts_are_refused(served: Served, body: Any) -> None:
    status, content, _ = served.request("api/verdicts", body, X_Page_Token=served.token)
    assert status in (404, 422), content


def test_each_target_has_its_own_review(root: Path, tmp_path: Path) -> None:
    info = Dataset(str(root)).read_info()
    Dataset(str(root)).write_info(info.model_copy(update={"targets": ("cat", "dog")}))
    with serve_review(root, tmp_path / "log") as served:
        assert b"<option selected>dog</option>" in b" ".join(
            served.request("?target=dog")[1].split()
        )
        key = served.get("api/page/0")["suspects"][0]["key"]
        body, token = {"verdicts": {key: "positive"}}, served.token
        served.request("api/verdicts?target=dog", body, X_Page_Token=token)
        assert served.get("api/page/0?target=dog")["progress"]["counts"] == {"positive": 1}
        assert served.get("api/page/0?target=cat")["progress"]["decided"] == 0
        status, content, _ = served.request("api/apply?target=dog", {}, X_Page_Token=token)
        assert (status, json.loads(content)) == (200, {"generation": 2, "num_applied": 1})
    shards = Dataset(str(root)).read_generation().shards
    assert [s.num_samples for s in shards if s.label == "dog"] == [1]
    assert verify_dataset(str(root)).problems == []


def test_interrupt_ends_the_server_with_code_0(root: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running_infineg("review", root, "--port", 0, log=log) as process:
        wait_until(lambda: "Every verdict" in log.read_text(), process, log)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 0, log.read_text()
    assert "Traceback" not in log.read_text()


def test_a_public_host_and_a_taken_port_are_refused(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"only on this machine.* ssh -L 8001:127\.0\.0\.1:8001"):
        serve_here(str(root), host="0.0.0.0", announce=print)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port}: cannot listen"):
            serve_here(str(root), port=port, announce=print)


# In the data set


def test_saved_verdicts_are_a_csv_that_the_command_takes(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = ReviewSession(str(root), "cat")
    keys = keys_of(session)
    session.decide({keys[0]: "positive", keys[1]: "negative"})
    session.decide({keys[0]: None, keys[2]: "drop"})
    path = root / "reviews" / "cat.csv"
    assert read_verdicts(str(path)) == {keys[1]: "negative", keys[2]: "drop"}
    again = ReviewSession(str(root), "cat")
    assert [each["verdict"] for each in again.page(0)["suspects"][:3]] == [None, "negative", "drop"]
    assert again.next_undecided(0) == 3
    code, output, _ = call_infineg(capsys, "review", root, "--apply")
    assert (code, "committed generation 2" in output) == (0, True)
    assert read_verdicts(str(path)) == {}, "applied verdicts are removed"
    assert verify_dataset(str(root)).problems == []
    code, _, error = call_infineg(capsys, "review", root, "--apply")
    assert code == 2
    assert "no verdict is saved" in error


def test_several_who_review_at_once_lose_nothing(root: Path) -> None:
    keys = keys_of(ReviewSession(str(root), "cat"))
    sessions = [ReviewSession(str(root), "cat") for _ in range(3)]

    def decide(number: int) -> None:
        for key in keys[number::3]:
            sessions[number].decide({key: "drop"})

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(decide, range(3)))
    saved = ReviewSession(str(root), "cat").page(0)["suspects"]
    assert {each["verdict"] for each in saved} == {"drop"}


def test_a_verdict_belongs_to_a_picture_not_to_its_key(root: Path) -> None:
    session = ReviewSession(str(root), "cat")
    key = keys_of(session)[0]
    VerdictFile(str(root), "cat").save({(key, "0" * 64): "positive"})
    session.refresh()
    assert session.progress()["decided"] == 0, "the key had another picture"


def test_a_data_set_on_an_object_store_is_reviewed_there(root: Path, s3_root: str) -> None:
    for name in storage.list_files(str(root)):
        if not name.startswith("embeddings/"):
            storage.write_atomic(storage.join(s3_root, name), (root / name).read_bytes())
    session = ReviewSession(s3_root, "cat")
    keys = keys_of(session)
    session.decide({keys[0]: "positive"})
    session.decide({keys[1]: "drop"})
    assert ReviewSession(s3_root, "cat").progress()["decided"] == 2
    assert session.suspect_image(keys[0])[:2] == b"\xff\xd8"
    assert len(session.nearest(keys[0])) == 3
    generation, num_applied = session.apply()
    assert (generation.number, num_applied) == (2, 2)
    assert verify_dataset(s3_root).problems == []


def test_a_damaged_verdict_file_is_named_with_its_line(root: Path) -> None:
    storage.write_atomic(str(root / "reviews" / "cat.csv"), b"key,verdict\na,drop\n")
    with pytest.raises(InfinegError, match=r"reviews/cat\.csv, line 2: wanted key, verdict, cont"):
        ReviewSession(str(root), "cat")


def test_reviewing_goes_on_during_a_build_and_applying_waits(root: Path) -> None:
    session = ReviewSession(str(root), "cat")
    key = keys_of(session)[0]
    with hold_lease(str(root)):
        assert session.decide({key: "negative"})["decided"] == 1
        with pytest.raises(InfinegError, match=f"is being built by .*process {os.getpid()}"):
            session.apply()
    assert session.progress()["decided"] == 1, "and nothing is lost"
    generation, num_applied = session.apply()
    assert (generation.number, num_applied) == (2, 1)
    assert session.progress() == {
        "generation": 2, "total": len(keys_of(session)), "decided": 0, "counts": {},
    }  # fmt: skip


def test_a_verdict_on_a_picture_that_left_the_quarantine_is_not_applied(root: Path) -> None:
    session = ReviewSession(str(root), "cat")
    keys = keys_of(session)
    session.decide({keys[0]: "positive", keys[1]: "negative"})
    take_down(str(root), TakenDown(keys=frozenset([keys[0]])))
    generation, num_applied = session.apply()
    assert (generation.number, num_applied) == (3, 1)
    assert generation.taken_down.keys == {keys[0]}


def test_a_deleted_picture_is_not_found(root: Path, tmp_path: Path) -> None:
    with serve_review(root, tmp_path / "log") as served:
        key = served.get("api/page/0")["suspects"][0]["key"]
        take_down(str(root), TakenDown(keys=frozenset([key])), purge=True)
        assert served.request(f"suspects/{key}")[0] == 404
        served.request("")  # a reload
        assert key not in {each["key"] for each in served.get("api/page/0")["suspects"]}


def test_a_positive_that_was_taken_down_is_not_shown(root: Path) -> None:
    session = ReviewSession(str(root), "cat")
    key = keys_of(session)[0]
    before = [each["content_hash"] for each in session.nearest(key)]
    shards = [s for s in Dataset(str(root)).read_generation().shards if s.label == "cat"]
    rows = [row for s in shards for row in Dataset(str(root)).read_sidecar(s).to_pylist()]
    uri = next(row["uri"] for row in rows if row["content_hash"] == before[0])
    take_down(str(root), TakenDown(uris=frozenset([uri])), purge=True)
    session.refresh()
    after = [each["content_hash"] for each in session.nearest(key)]
    assert after[:2] == before[1:]
    assert len(after) == 3
    with pytest.raises(InfinegError, match="no shard has a positive"):
        session.positive_image(before[0])


def test_large_quarantines_are_paged(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "PAGE_SIZE", 5)
    session = ReviewSession(str(root), "cat")
    total = session.progress()["total"]
    pages = [session.page(number) for number in range(session.page(0)["num_pages"])]
    keys = [each["key"] for page in pages for each in page["suspects"]]
    assert len(set(keys)) == len(keys) == total
    assert {len(page["suspects"]) for page in pages[:-1]} == {5}
    assert session.page(len(pages))["suspects"] == []
    session.decide(dict.fromkeys(keys[3:7], "drop"))
    assert [session.next_undecided(after) for after in (-1, 2, 6, total - 1)] == [0, 7, 7, 0]
    session.decide(dict.fromkeys(keys, "drop"))
    assert session.next_undecided(0) is None
