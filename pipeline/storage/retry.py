"""Which storage errors are transient, and how they are retried."""

import errno
import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from pipeline.errors import TransientStorageError
from pipeline.storage import errors

_log = logging.getLogger(__name__)

T = TypeVar("T")

NUM_TRIES = 5
_FIRST_WAIT_S = 0.2

# Named: an unknown error must stop the run instead of being retried.
TRANSIENT = frozenset(
    {
        "builtins.TimeoutError",
        "builtins.ConnectionError",
        "builtins.InterruptedError",
        "ssl.SSLEOFError",
        "http.client.IncompleteRead",
        # s3://. Not all answers of a throttling S3 are XML: github.com/fsspec/s3fs/issues/484
        "botocore.exceptions.ConnectionError",
        "botocore.exceptions.HTTPClientError",
        "botocore.exceptions.IncompleteReadError",
        "botocore.exceptions.FlexibleChecksumError",
        "botocore.parsers.ResponseParserError",
        # https:// and gs://
        "aiohttp.client_exceptions.ClientConnectionError",
        "aiohttp.client_exceptions.ClientPayloadError",
        "gcsfs.retry.ChecksumError",
        "google.auth.exceptions.TransportError",
        # hf://, by its present client and earlier ones
        "httpx2.TransportError",
        "httpx.TransportError",
        "requests.exceptions.ChunkedEncodingError",
        "requests.exceptions.ConnectionError",
        "requests.exceptions.Timeout",
        # az://
        "azure.core.exceptions.ServiceRequestError",
        "azure.core.exceptions.ServiceResponseError",
    }
)
_TRANSIENT_ERRNO = frozenset(
    {errno.EAGAIN, errno.ESTALE, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN}
)
_TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
# Of S3, which sends some of them with status 400 or 409:
# docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
_TRANSIENT_CODE = frozenset(
    {
        "ConditionalRequestConflict",
        "InternalError",
        "OperationAborted",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
    }
)


def retry(action: Callable[[], T], what: str) -> T:
    """Runs `action`, again after a transient error, waiting about 0.2, 0.4, 0.8, 1.6 s.

    An error that a user can mend becomes an InfinegError that begins with `what`, but
    FileNotFoundError stays one; any other error is raised unchanged. No message shows a secret.
    """
    for attempt in range(NUM_TRIES):
        try:
            return action()
        except Exception as error:
            if not is_transient(error):
                refusal = errors.as_user_error(error, what)
                if refusal is None:
                    if isinstance(error, OSError) and error.errno and error.filename is None:
                        error.filename = what  # a read that fails names no file
                    raise
                raise refusal from None
            reason = f"{type(error).__name__}: {errors.first_line(error)}".rstrip(": ")
            if attempt == NUM_TRIES - 1:
                raise TransientStorageError(f"{what}: {reason} ({NUM_TRIES} tries)") from None
            _log.warning("%s: %s, trying again", what, reason)
            # With jitter, because workers that failed together would all come back together.
            time.sleep(_FIRST_WAIT_S * 2**attempt * random.uniform(0.75, 1.25))
    raise AssertionError("unreachable")


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later: a busy server, a lost connection."""
    chain = list(errors.chain_of(error))
    statuses = [status for link in chain if (status := errors.status_of(link))]
    if statuses:
        codes = {errors.s3_code(link) for link in chain}
        return statuses[0] in _TRANSIENT_STATUS or not codes.isdisjoint(_TRANSIENT_CODE)
    names = {name for link in chain for name in errors.names_of(link)}
    if not names.isdisjoint(errors.PERMANENT):
        return False
    numbers = {link.errno for link in chain if isinstance(link, OSError)}
    return not (names.isdisjoint(TRANSIENT) and numbers.isdisjoint(_TRANSIENT_ERRNO))
