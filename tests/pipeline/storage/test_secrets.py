"""No secret of an address is stored or shown."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.errors import ConfigError, InfinegError
from pipeline.sources import open_source
from support.builds import build_inline, config_of, sidecar_rows, squares
from support.corpus import write_tar
from support.inputs import drawings, things
from support.processes import call_infineg
from support.servers import BUCKET, S3Server


@pytest.fixture
def sign(tmp_path: Path, s3_server: S3Server) -> Any:
    """Puts a file into a bucket; returns the address that lets anybody read it."""
    client = s3_server.client()

    def upload(path: Path) -> str:
        client.upload_file(str(path), BUCKET, f"{tmp_path.name}/{path.name}")
        params = {"Bucket": BUCKET, "Key": f"{tmp_path.name}/{path.name}"}
        return str(client.generate_presigned_url("get_object", Params=params))

    return upload


def all_texts(root: Path) -> str:
    """What any file of a data set says, compressed or not."""
    texts = []
    for path in root.rglob("*"):
        if path.suffix == ".parquet":
            rows = pq.read_table(path)
            names = [f.name for f in rows.schema if pa.types.is_string(f.type)]
            texts.append(str(rows.select(names).to_pylist()))
        elif path.is_file():
            texts.append(path.read_bytes().decode("latin-1"))
    return "\n".join(texts)


def test_signatures_of_addresses_are_in_no_file_of_a_data_set(tmp_path: Path, sign: Any) -> None:
    members = [(f"{n:05d}.jpg", image) for n, image in enumerate(drawings("cat", 30))]
    cats = sign(write_tar(tmp_path / "cats.tar", members))
    table = pa.table({"image": things(30), "label": ["thing"] * 30})
    pq.write_table(table, tmp_path / "things.parquet")
    table_url = sign(tmp_path / "things.parquet")
    entry = {
        "name": "things",
        "kind": "parquet",
        "label_state": "verified_absent",
        "params": {"urls": table_url},
    }
    config = config_of(
        tmp_path / "data",
        [entry, squares(num_pictures=20)],
        positives=[{"name": "cats", "kind": "webdataset", "params": {"urls": cats}}],
    )
    build_inline(config)
    secrets = {value for url in (cats, table_url) for value in secrets_of(url)}
    texts = all_texts(tmp_path / "data")
    assert "cats.tar?" in texts
    assert {secret for secret in secrets if secret in texts} == set()
    uris = sidecar_rows(tmp_path / "data")["uri"].to_pylist()
    assert sum("cats.tar?" in uri and uri.endswith(".jpg") for uri in uris) == 30

    signed_anew = cats.replace(secrets_of(cats)[-1], "another")
    other = config.model_copy(
        update={"positives": (config.positives[0].model_copy(
            update={"params": {"urls": signed_anew}}),)}
    )  # fmt: skip
    with pytest.raises(ConfigError, match="an address, in a part that is kept secret"):
        build_inline(other)


def secrets_of(url: str) -> list[str]:
    found = re.findall(
        r"[?&](?:AWSAccessKeyId|Signature|X-Amz-(?:Credential|Signature))=([^&]+)", url
    )
    assert found, url
    return found


def test_addresses_that_differ_in_secrets_alone_are_partitions_of_their_own() -> None:
    urls = [f"https://example.org/photos.tar?key=secret{n}" for n in range(2)]
    for kind, params in (("webdataset", {"urls": urls}), ("open_images", {"path": urls})):
        ids = [partition.id for partition in open_source(kind, params).partitions()]
        assert len(set(ids)) == 2
        assert not any("secret" in each for each in ids)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:SECRET@host/a", "https://***@host/a"),
        ("https://me:SEC/RE@T@host/a/b@2x.png", "https://***@host/a/b@2x.png"),
        ("https://host:8080/a/b@2x.png", "https://host:8080/a/b@2x.png"),
        ("s3://SECRET:SECRET@bucket/key", "s3://***@bucket/key"),
        ("https://h/a?X-Amz-Signature=SECRET&part=1", "https://h/a?X-Amz-Signature=***&part=1"),
        ("https://h/a?sv=1&sig=SECRET%3D", "https://h/a?sv=1&sig=***"),
        ("https://h/a?jwt=SECRET and more", "https://h/a?jwt=*** and more"),
        ("AccountName=x;AccountKey=SECRET==;Suffix=y", "AccountName=x;AccountKey=***;Suffix=y"),
        ("{'aws_secret_access_key': 'SECRET', 'n': 1}", "{'aws_secret_access_key': '***', 'n': 1}"),
        ('{"token": "SECRET"}', '{"token": "***"}'),
        ("Authorization: Basic SECRET", "Authorization: ***"),
        ("Bearer SECRETSECRET", "Bearer ***"),
        ("the key AKIASECRETSECRET1234 is", "the key *** is"),
        ("hf_SECRETsecretSECRETsecret", "***"),
        ("export RAY_AUTH_TOKEN=SECRET", "export RAY_AUTH_TOKEN=***"),
        ("set the storage option token: anon", "set the storage option token: anon"),
        ("set AWS_SECRET_ACCESS_KEY; then", "set AWS_SECRET_ACCESS_KEY; then"),
        ("keyword=x target_labels=[cat]", "keyword=x target_labels=[cat]"),
    ],
)
def test_secret_is_taken_out_and_nothing_else(text: str, shown: str) -> None:
    assert storage.redact(text) == shown


_PROGRAM = """
import logging, sys, threading
from train.cli import app, main

URL = "https://me:SECRET@host/a.tar?X-Amz-Signature=SECRET&sig=SECRET"

@app.command()
def fail(how: str) -> None:
    logging.getLogger("pipeline").warning("reading %s", URL)
    if how == "thread":
        thread = threading.Thread(target=lambda: {}[URL])
        thread.start()
        thread.join()
    elif how == "bug":
        try:
            raise ValueError(URL)
        except ValueError as error:
            raise KeyError(f"from {URL}") from error
    else:
        raise OSError(5, "Input/output error", URL)

main()
"""


@pytest.mark.parametrize("how", ["thread", "bug", "outside"])
@pytest.mark.parametrize("options", [[], ["--debug"], ["--log-format", "json"]])
def test_nothing_that_a_command_prints_shows_a_secret(how: str, options: list[str]) -> None:
    command = [sys.executable, "-c", _PROGRAM, *options, "fail", how]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    printed = done.stdout + done.stderr
    assert "host/a.tar?X-Amz-Signature=***&sig=***" in printed
    assert "SECRET@" not in printed
    assert "=SECRET" not in printed
    is_traced = how != "outside" or "--debug" in options
    assert ("Traceback" in printed) == is_traced


def test_message_of_an_error_shows_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise InfinegError("https://me:secret@example.org/a.tar?sig=secret: broken tar")

    monkeypatch.setattr("pipeline.dataset.dataset.Dataset.read_info", fail)
    _, _, text = call_infineg(capsys, "status", "somewhere")
    assert "example.org/a.tar" in text
    assert "secret" not in text
