"""An S3 server on loopback (moto's), which other processes reach through their environment."""

import contextlib
import logging
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

BUCKET = "infineg-test"


@dataclass(frozen=True)
class S3Server:
    """Where it is, and the environment in which tools find it."""

    endpoint_url: str
    # "PUT /bucket/key", "POST /bucket?delete", ...: all that succeeded, in order.
    writes: list[str] = field(default_factory=list)
    reads: list[str] = field(default_factory=list)  # "GET /bucket/key", ...: all

    @property
    def env(self) -> dict[str, str]:
        return environment(self.endpoint_url)

    def client(self) -> Any:
        """A client of its own, as another program would have."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id="other",
            aws_secret_access_key="program",
        )

    def new_root(self) -> str:
        """A folder that no test has used."""
        return f"s3://{BUCKET}/{uuid.uuid4().hex[:8]}"


def environment(endpoint_url: str) -> dict[str, str]:
    """What a user would set; the files are those of nobody, lest a real account be used."""
    return {
        "AWS_ENDPOINT_URL": endpoint_url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }


def forget_clients() -> None:
    """Clients remember the environment in which they were made."""
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()


@contextlib.contextmanager
def run_s3_server(host: str = "127.0.0.1") -> Iterator[S3Server]:
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request
    writes: list[str] = []
    reads: list[str] = []
    app = _one_write_at_a_time(DomainDispatcherApplication(create_backend_app), writes, reads)
    server = make_server(host, 0, app, threaded=True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        running = S3Server(f"http://{host}:{server.server_port}", writes, reads)
        running.client().create_bucket(Bucket=BUCKET)
        yield running
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _one_write_at_a_time(
    app: Callable[..., Iterable[bytes]], writes: list[str], reads: list[str]
) -> Callable[..., Iterable[bytes]]:
    """S3 decides a condition and writes in one step; moto does so in two. Lists all requests."""
    lock = threading.Lock()

    def serve(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            reads.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
            return app(environ, start_response)
        query = environ["QUERY_STRING"]
        request = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}{'?' if query else ''}{query}"

        def start(status: str, *arguments: Any) -> Any:
            if status.startswith("2"):
                writes.append(request)
            return start_response(status, *arguments)

        with lock:
            return app(environ, start)

    return serve
