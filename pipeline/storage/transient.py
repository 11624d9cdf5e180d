"""Which errors of storage pass by themselves, and what to tell of those that do not.

Errors are told apart by the names of their classes, so that no driver is imported to name them.
"""

import errno
import http
import logging
import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from pipeline.errors import ConfigError, InfinegError, TransientStorageError
from pipeline.storage.locations import shown

_log = logging.getLogger(__name__)

T = TypeVar("T")

NUM_TRIES = 5
_FIRST_WAIT_S = 0.2

# Named, because an unknown error must stop the run instead of being tried again.
_TRANSIENT = frozenset(
    {
        "builtins.TimeoutError",
        "builtins.ConnectionError",
        "builtins.InterruptedError",
        "ssl.SSLEOFError",
        "http.client.IncompleteRead",
        # s3://. Some answers of a throttling S3 are no XML: github.com/fsspec/s3fs/issues/484
        "botocore.exceptions.ConnectionError",
        "botocore.exceptions.HTTPClientError",
        "botocore.exceptions.IncompleteReadError",
        "botocore.exceptions.FlexibleChecksumError",
        "botocore.parsers.ResponseParserError",
        # https:// and gs://
        "aiohttp.client_exceptions.ClientConnectionError",
        "aiohttp.client_exceptions.ClientPayloadError",
        "gcsfs.checkers.ChecksumError",
        "gcsfs.retry.ChecksumError",
        "google.auth.exceptions.TransportError",
        # hf://, by the client of today and those before it
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
# Sub-classes of the above that will not pass.
_PERMANENT = frozenset(
    {
        "ssl.SSLCertVerificationError",
        "aiohttp.client_exceptions.ClientConnectorCertificateError",
        "aiohttp.client_exceptions.ServerFingerprintMismatch",
        "botocore.exceptions.SSLError",
        "httpx2.UnsupportedProtocol",
        "httpx.UnsupportedProtocol",
        "huggingface_hub.errors.OfflineModeIsEnabled",
    }
)
_TRANSIENT_ERRNO = frozenset(
    {errno.EAGAIN, errno.ESTALE, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN}
)
_TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
# Where errors without a response have theirs.
_STATUS = {
    "aiohttp.client_exceptions.ClientResponseError": "status",
    "azure.core.exceptions.HttpResponseError": "status_code",
    "gcsfs.retry.HttpError": "code",
}
# Of S3, which has them under status 400 and 409, too:
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

_AWS_CREDENTIALS = (
    "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for a public bucket, set the "
    "storage option anon: true"
)
_LOGIN = {
    "botocore.exceptions.NoCredentialsError": _AWS_CREDENTIALS,
    "botocore.exceptions.PartialCredentialsError": _AWS_CREDENTIALS,
    "botocore.exceptions.CredentialRetrievalError": _AWS_CREDENTIALS,
    "botocore.exceptions.ProfileNotFound": _AWS_CREDENTIALS,
    "botocore.exceptions.TokenRetrievalError": "log in again: aws sso login",
    "botocore.exceptions.SSOError": "log in again: aws sso login",
    "botocore.exceptions.LoginError": "log in again: aws login",
    "google.auth.exceptions.GoogleAuthError": "set GOOGLE_APPLICATION_CREDENTIALS, or run: gcloud "
    "auth application-default login; for a public bucket, set the storage option token: anon",
    "azure.core.exceptions.ClientAuthenticationError": "set AZURE_STORAGE_CONNECTION_STRING, or "
    "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY",
}
_CODES = {
    "NoSuchBucket": "there is no such bucket (at this endpoint)",
    "InvalidBucketName": "no bucket can have this name",
    "InvalidAccessKeyId": f"the access key is not known there: {_AWS_CREDENTIALS}",
    "SignatureDoesNotMatch": f"the secret key does not fit the access key: {_AWS_CREDENTIALS}",
    "ExpiredToken": f"the session token has expired: {_AWS_CREDENTIALS}",
    "InvalidToken": f"the session token is refused: {_AWS_CREDENTIALS}",
    "RequestTimeTooSkewed": "the clock of this machine is wrong",
    "AuthorizationHeaderMalformed": "the bucket is in another region: set AWS_DEFAULT_REGION",
    "PermanentRedirect": "the bucket is in another region: set AWS_DEFAULT_REGION",
}
_ERRNO = {
    errno.EACCES: "permission denied; check who owns it and its mode",
    errno.EPERM: "permission denied",
    errno.ENOSPC: "no space is left there",
    errno.EDQUOT: "the quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.ENAMETOOLONG: "the name is too long",
}


def retry(action: Callable[[], T], what: str) -> T:
    """Runs `action` again on named transient errors, waiting about 0.2, 0.4, 0.8, 1.6 s.

    FileNotFoundError stays one; what a user can mend becomes an InfinegError that begins with
    `what`; an error without a name here is raised as it is. None of them shows a secret.
    """
    for attempt in range(NUM_TRIES):
        try:
            return action()
        except Exception as error:
            if not is_transient(error):
                told = _told(error, what)
                if told is None:
                    raise
                raise told from None
            reason = f"{type(error).__name__}: {shown(str(error))}".rstrip(": ")
            if attempt == NUM_TRIES - 1:
                raise TransientStorageError(f"{what}: {reason} ({NUM_TRIES} tries)") from None
            _log.warning("%s: %s, trying again", what, reason)
            # Jitter: workers that failed together would otherwise come back together.
            time.sleep(_FIRST_WAIT_S * 2**attempt * random.uniform(0.75, 1.25))
    raise AssertionError("unreachable")


def is_transient(error: BaseException) -> bool:
    """True for errors that pass: the server was busy, the connection was lost."""
    chain = list(_chain(error))
    statuses = [status for link in chain if (status := _status(link))]
    if statuses:
        codes = {s3_code(link) for link in chain}
        return statuses[0] in _TRANSIENT_STATUS or not codes.isdisjoint(_TRANSIENT_CODE)
    names = {name for link in chain for name in _names(link)}
    if not names.isdisjoint(_PERMANENT):
        return False
    numbers = {link.errno for link in chain if isinstance(link, OSError)}
    return not (names.isdisjoint(_TRANSIENT) and numbers.isdisjoint(_TRANSIENT_ERRNO))


def _told(error: Exception, what: str) -> Exception | None:
    """The error that a user can act on; None where this is a bug or already tells enough."""
    if isinstance(error, InfinegError):
        return None
    chain = list(_chain(error))
    names = [name for link in chain for name in _names(link)]
    for name in names:
        if name in _LOGIN:
            reason = shown(str(error)).rstrip(".")
            return ConfigError(f"{what}: {reason}: {_LOGIN[name]}")
        if name in _PERMANENT or name == "s3fs.utils.FileExpired":
            return InfinegError(f"{what}: {shown(str(error))}")
    for link in chain:
        if (code := s3_code(link)) in _CODES:
            return ConfigError(f"{what}: {_CODES[code]}")
    return _told_of_status(error, chain, what)


def _told_of_status(error: Exception, chain: list[BaseException], what: str) -> Exception | None:
    status = next((status for link in chain if (status := _status(link))), None)
    if isinstance(error, FileNotFoundError) and status in (None, 404):
        is_plain = error.errno is not None and shown(str(error)) == str(error)
        return None if is_plain else FileNotFoundError(errno.ENOENT, f"{what}: no such file")
    if status in (401, 403):
        return InfinegError(f"{what}: access is denied ({status}) with the credentials in use")
    if status is not None:
        phrase = http.HTTPStatus(status).phrase if status in set(http.HTTPStatus) else ""
        return InfinegError(f"{what}: the server answers {status} {phrase}".rstrip())
    if isinstance(error, OSError) and error.errno in _ERRNO:
        return InfinegError(f"{what}: {_ERRNO[error.errno]}")
    return (
        InfinegError(f"{what}: permission denied") if isinstance(error, PermissionError) else None
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from: drivers wrap what a server said."""
    link: BaseException | None = error
    for _ in range(8):
        if link is None:
            return
        yield link
        link = link.__cause__


def _names(error: BaseException) -> list[str]:
    return [f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__]


def _status(error: BaseException) -> int | None:
    """HTTP status that an error of a driver carries."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        value = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    elif response is not None:  # httpx, requests
        value = getattr(response, "status_code", None)
    else:
        value = next(
            (getattr(error, _STATUS[n], None) for n in _names(error) if n in _STATUS), None
        )
    return int(value) if str(value).isdigit() else None


def s3_code(error: BaseException | None) -> str | None:
    """The word by which S3 names an error."""
    response = getattr(error, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None
