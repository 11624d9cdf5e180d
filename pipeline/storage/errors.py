"""Errors of storage drivers, translated into errors that a user can act on.

Drivers are optional and imported late, so their errors are named instead of imported.
"""

import errno
import http
from collections.abc import Iterator

from pipeline.errors import ConfigError, InfinegError
from pipeline.storage.locations import redact

# Never worth another try, although they look like lost connections.
PERMANENT = frozenset(
    {
        "ssl.SSLCertVerificationError",
        "aiohttp.client_exceptions.ClientConnectorCertificateError",
        "aiohttp.client_exceptions.ServerFingerprintMismatch",
        "botocore.exceptions.SSLError",
        "httpx2.UnsupportedProtocol",
        "httpx.UnsupportedProtocol",
        "huggingface_hub.errors.OfflineModeIsEnabled",
        "s3fs.utils.FileExpired",
        # An address, or one that it redirects to, that is none of http or https.
        "aiohttp.client_exceptions.InvalidURL",
        "aiohttp.client_exceptions.NonHttpUrlClientError",
        # Addresses that redirect to each other.
        "aiohttp.client_exceptions.TooManyRedirects",
        "httpx2.TooManyRedirects",
        "httpx.TooManyRedirects",
        "requests.exceptions.TooManyRedirects",
    }
)

# For those whose own message is empty.
_MEANINGS = {"aiohttp.client_exceptions.TooManyRedirects": "it redirects in circles"}

_AWS_CREDENTIALS = (
    "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for a public bucket, set the "
    "storage option anon: true"
)

# What to do about them.
LOGIN = {
    "botocore.exceptions.NoCredentialsError": _AWS_CREDENTIALS,
    "botocore.exceptions.PartialCredentialsError": _AWS_CREDENTIALS,
    "botocore.exceptions.CredentialRetrievalError": _AWS_CREDENTIALS,
    "botocore.exceptions.ProfileNotFound": _AWS_CREDENTIALS,
    "botocore.exceptions.ParamValidationError": "check the names of the bucket and the object",
    "botocore.exceptions.TokenRetrievalError": "log in again: aws sso login",
    "botocore.exceptions.SSOError": "log in again: aws sso login",
    "botocore.exceptions.LoginError": "log in again: aws login",
    "google.auth.exceptions.GoogleAuthError": "set GOOGLE_APPLICATION_CREDENTIALS, or run: gcloud "
    "auth application-default login; for a public bucket, set the storage option token: anon",
    "huggingface_hub.errors.RepositoryNotFoundError": "check its name; if it is private or gated, "
    "set HF_TOKEN or run: hf auth login",
    "azure.core.exceptions.ClientAuthenticationError": "set AZURE_STORAGE_CONNECTION_STRING, or "
    "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY",
}

# By the error codes of S3.
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
    errno.EACCES: "permission denied; check its owner and mode",
    errno.EPERM: "permission denied; check its owner and mode",
    errno.ENOSPC: "no space is left there; free some, then run again: it resumes",
    errno.EDQUOT: "the quota is used up; free some space, then run again: it resumes",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ELOOP: "a link that leads to itself; remove it",
}

# The attribute with the HTTP status, of errors that have no response.
STATUS = {
    "aiohttp.client_exceptions.ClientResponseError": "status",
    "azure.core.exceptions.HttpResponseError": "status_code",
    "gcsfs.retry.HttpError": "code",
}


def as_user_error(error: Exception, what: str) -> Exception | None:
    """The error that a user can act on; None if `error` is a bug, or already one of these."""
    if isinstance(error, InfinegError):
        return None
    chain = list(chain_of(error))
    names = [name for link in chain for name in names_of(link)]
    for name in names:
        if name in LOGIN:
            return ConfigError(f"{what}: {first_line(error).rstrip('.')}: {LOGIN[name]}")
        if name in PERMANENT:
            return InfinegError(f"{what}: {_MEANINGS.get(name) or first_line(error)}")
    for link in chain:
        if (code := s3_code(link)) in _CODES:
            return ConfigError(f"{what}: {_CODES[code]}")
    return _by_status(error, chain, what)


def _by_status(error: Exception, chain: list[BaseException], what: str) -> Exception | None:
    status = next((status for link in chain if (status := status_of(link))), None)
    # Without an errno a driver raised it, not the operating system.
    is_missing = isinstance(error, FileNotFoundError) and error.errno is None
    if status == 404 or (status is None and is_missing):
        return FileNotFoundError(errno.ENOENT, f"{what}: no such file")
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


def first_line(error: BaseException) -> str:
    return redact(str(error)).strip().partition("\n")[0]


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes: drivers wrap the answer of a server."""
    link: BaseException | None = error
    for _ in range(8):
        if link is None:
            return
        yield link
        link = link.__cause__


def names_of(error: BaseException) -> list[str]:
    return [f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__]


def status_of(error: BaseException) -> int | None:
    """HTTP status of a driver's error; None without one."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        value = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    elif response is not None:  # httpx, requests
        value = getattr(response, "status_code", None)
    else:
        value = next(
            (getattr(error, STATUS[n], None) for n in names_of(error) if n in STATUS), None
        )
    return int(value) if str(value).isdigit() else None


def s3_code(error: BaseException | None) -> str | None:
    """The error code of S3, such as NoSuchKey."""
    response = getattr(error, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None


def is_refused(error: BaseException) -> bool:
    """Whether the condition of a write did not hold, or the file is gone."""
    if isinstance(error, FileExistsError):
        return True
    codes = {s3_code(error), s3_code(error.__cause__)}
    return not codes.isdisjoint({"PreconditionFailed", "412", "NoSuchKey"})
