"""What an error of a storage driver says: the names of its class, a status, a code.

Errors are told apart by the names of their classes, so that no driver is imported to name them.
"""

from collections.abc import Iterator

from pipeline.storage.locations import shown

# Where errors without a response have theirs.
_STATUS = {
    "aiohttp.client_exceptions.ClientResponseError": "status",
    "azure.core.exceptions.HttpResponseError": "status_code",
    "gcsfs.retry.HttpError": "code",
}


def first_line(error: Exception) -> str:
    return shown(str(error)).strip().partition("\n")[0]


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from: drivers wrap what a server said."""
    link: BaseException | None = error
    for _ in range(8):
        if link is None:
            return
        yield link
        link = link.__cause__


def names_of(error: BaseException) -> list[str]:
    return [f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__]


def status_of(error: BaseException) -> int | None:
    """HTTP status that an error of a driver carries."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        value = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    elif response is not None:  # httpx, requests
        value = getattr(response, "status_code", None)
    else:
        value = next(
            (getattr(error, _STATUS[n], None) for n in names_of(error) if n in _STATUS), None
        )
    return int(value) if str(value).isdigit() else None


def s3_code(error: BaseException | None) -> str | None:
    """The word by which S3 names an error."""
    response = getattr(error, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None
