"""Versions of files: another one if the content may be another, without reading it."""

import os
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.errors import InfinegError
from pipeline.storage import FileVersion
from support.servers import BUCKET, S3Server, forget_clients, run_flaky_server


def by_name(versions: list[FileVersion]) -> dict[str, FileVersion]:
    return {version.uri.rpartition("/")[2]: version for version in versions}


def put(server: S3Server, root: str, name: str, content: bytes) -> None:
    key = f"{root.removeprefix(f's3://{BUCKET}/')}/{name}"
    server.client().put_object(Bucket=BUCKET, Key=key, Body=content)


def test_local_files_have_size_and_time(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", ".hidden"):
        (tmp_path / name).write_bytes(b"abc")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/c.jpg").symlink_to(tmp_path / "a.jpg")
    (tmp_path / "sub/loop.jpg").symlink_to(tmp_path / "sub/loop.jpg")
    before = by_name(storage.list_versions(str(tmp_path)))
    assert [(name, v.size) for name, v in sorted(before.items())] == [
        ("a.jpg", 3), ("b.jpg", 3), ("c.jpg", 3), ("loop.jpg", None),
    ]  # fmt: skip
    os.utime(tmp_path / "b.jpg", ns=(0, 1))
    after = by_name(storage.list_versions(str(tmp_path)))
    assert {name for name in before if before[name] != after[name]} == {"b.jpg"}


def test_missing_files_and_folders_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"abc")
    uris = [str(tmp_path / name) for name in ("a.tar", "b.tar", "no/c.tar")]
    assert [v.uri for v in storage.versions_of([*uris, str(tmp_path)])] == uris[:1]
    assert storage.list_versions(str(tmp_path / "no")) == []


def test_objects_have_the_same_version_listed_and_asked_one_by_one(
    s3_root: str, s3_server: S3Server
) -> None:
    names = [f"{number:03d}.jpg" for number in range(40)]
    for name in names:
        put(s3_server, s3_root, name, name.encode())
    listed = storage.list_versions(s3_root)
    assert [(v.uri, v.size) for v in listed] == [(f"{s3_root}/{name}", 7) for name in names]
    assert all("-" not in v.stamp and len(v.stamp.strip('"')) == 32 for v in listed), "an MD5"
    s3_server.reads.clear()
    assert storage.versions_of(v.uri for v in listed[:5]) == listed[:5]
    assert len(s3_server.reads) == 5, "of a few, each is asked for"
    s3_server.reads.clear()
    assert storage.versions_of(v.uri for v in reversed(listed)) == listed[::-1]
    assert len(s3_server.reads) == 1, "many are listed"
    put(s3_server, s3_root, names[3], b"another")
    again = storage.list_versions(s3_root)
    assert [new.uri for old, new in zip(listed, again, strict=True) if old != new] == [
        f"{s3_root}/{names[3]}"
    ]


def test_bucket_that_cannot_be_listed_is_asked_one_by_one(
    s3_root: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{number:03d}.jpg" for number in range(40)]
    for name in names:
        put(s3_server, s3_root, name, name.encode())
    with run_flaky_server(
        upstream=s3_server.endpoint_url,
        faults=["403"],
        is_flaky=lambda _, path: "list-type" in path,
    ) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        forget_clients()
        found = storage.versions_of(f"{s3_root}/{name}" for name in names)
        assert [v.size for v in found] == [7] * 40
        assert proxy.num_requests("HEAD") == 40
        proxy.faults.append("403")
        with pytest.raises(InfinegError, match="the access key is not known there"):
            storage.list_versions(s3_root)


def test_web_servers_are_asked_for_headers_only() -> None:
    with run_flaky_server(files={"/a.tar": b"abc", "/b.tar": b"xyz"}) as server:
        uris = [f"{server.url}/{name}.tar" for name in "abc"]
        before = storage.versions_of(uris)
        assert [(v.uri, v.size) for v in before] == [(uri, 3) for uri in uris[:2]]
        server.files["/b.tar"] = b"xyy"
        after = storage.versions_of(uris)
        assert (before[0] == after[0], before[1] == after[1]) == (True, False)
        server.faults.append("503")
        assert storage.versions_of(uris[:1]) == before[:1], "tried again"
        assert server.num_requests("GET") <= 2 * 1 + 1, "only of the missing one"
