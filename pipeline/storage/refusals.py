"""What to tell of errors that do not pass: what is wrong, and what to do about it."""

import errno
import http

from pipeline.errors import ConfigError, InfinegError
from pipeline.storage.driver_errors import chain_of, first_line, names_of, s3_code, status_of

# Kinds of lost connections and absent servers that will not pass.
PERMANENT = frozenset(
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
    "huggingface_hub.errors.RepositoryNotFoundError": "check its name; if it is private or gated, "
    "set HF_TOKEN or run: hf auth login",
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


def told(error: Exception, what: str) -> Exception | None:
    """The error that a user can act on; None where this is a bug or already tells enough."""
    if isinstance(error, InfinegError):
        return None
    chain = list(chain_of(error))
    names = [name for link in chain for name in names_of(link)]
    for name in names:
        if name in _LOGIN:
            return ConfigError(f"{what}: {first_line(error).rstrip('.')}: {_LOGIN[name]}")
        if name in PERMANENT or name == "s3fs.utils.FileExpired":
            return InfinegError(f"{what}: {first_line(error)}")
    for link in chain:
        if (code := s3_code(link)) in _CODES:
            return ConfigError(f"{what}: {_CODES[code]}")
    return _told_of_status(error, chain, what)


def _told_of_status(error: Exception, chain: list[BaseException], what: str) -> Exception | None:
    status = next((status for link in chain if (status := status_of(link))), None)
    if status == 404 or (status is None and _is_bare_not_found(error)):
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


def _is_bare_not_found(error: Exception) -> bool:
    """Raised by a driver, without the words of an operating system."""
    return isinstance(error, FileNotFoundError) and error.errno is None
