"""URIs: the file system of each, its options, and how it is shown without secrets.

A URI is a local path or a URL with one protocol of `_DRIVERS`. Chained URLs of fsspec (`a::b`) and
protocols that run programs are refused: a URI may come from somebody else's config.
"""

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import ConfigError

# Protocol -> the package that fsspec needs for it, "" for none.
_DRIVERS = {
    "file": "",
    "local": "",
    "memory": "",
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "hf": "huggingface_hub",
    "http": "aiohttp",
    "https": "aiohttp",
}
_PROTOCOL = re.compile(r"([A-Za-z0-9+.:-]+)://")
_SECRET_NAME = re.compile(
    r"(?:^|_)(?:key|secret|token|password|passwd|passphrase|credentials?|authorization|cookie)$"
    r"|access_key|secret_key|account_key|customerkey|sas_token|connection_string"
)
# Words of gcsfs for where its token comes from: not secret.
_TOKEN_WORDS = ("anon", "google_default", "cloud", "cache")

_WORD = r"(?:secret|token|passw|pwd|credential|(?:account|access|api|shared)[_-]?key|signature)"
# What comes after the first group is secret.
_SECRETS = tuple(
    re.compile(pattern)
    for pattern in (
        # user:password@ of a URL, in which a password may hold `/` and `@` as they are
        r"((?<=://))(?:[^/\s@?#:]*:(?!\d+[/?#])[^\s@'\"]+@)?[^/\s?#'\"]*(?=@)",
        r"(?i)([?&;][^=&\s]*(?:sig|token|secret|pass|pwd|credential|auth|key|policy|session|jwt)"
        r"[^=&\s]*=)[^&;\s'\"<>)]+",
        rf"(?i)((?<![\w.-])[\w.-]*{_WORD}[\w.-]*=)[^&;\s'\"<>)]+",
        # of a dictionary, or of JSON
        rf"(?i)(['\"][\w.-]*{_WORD}[\w.-]*['\"]\s*:\s*b?['\"])[^'\"]+",
        r"(?i)((?:authorization|x-amz-security-token|cookie)['\"]?\s*[:=]\s*['\"]?)[^'\"\n,}]+",
        r"(?i)(\bbearer\s+)[\w.~+/=-]{8,}",
        # keys that are known by their form: AWS, Hugging Face, GitHub
        r"()\b(?:(?:AKIA|ASIA)[A-Z0-9]{16}|hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,})\b",
    )
)
_MAY_HOLD_ONE = re.compile(r"[@=]|['\"]\s*:|(?i:bearer|authoriz|cookie|token)|A[KS]IA|hf_|gh[a-z]_")
# How Python holds a byte of a file name that is no UTF-8 (PEP 383); JSON may hold others.
_SURROGATE = re.compile("[\ud800-\udfff]")

# Many threads share one client, whose default pool holds 10.
_NUM_CONNECTIONS = 64
_HTTP_TIMEOUT_S = 60
# By default s3fs reads 50 MiB ahead, even for the header of a tar.
_READ_AHEAD_BYTES = 8 * 2**20

_options: dict[str, dict[str, Any]] = {}


def configure(options: Mapping[str, Mapping[str, Any]]) -> None:
    """Sets the fsspec options of all URIs of this process: URL prefix -> options.

    `{"s3://public": {"anon": True}, "s3://": {"endpoint_url": "http://127.0.0.1:9000"}}`: the
    longest prefix that ends at a `/` of the URI gives all its options. Credentials come from the
    environment or the vendor's files, never from here: a config is stored and shown.
    """
    for prefix, given in options.items():
        if "://" not in prefix:
            raise ConfigError(f"storage {prefix!r}: a prefix is a URL such as s3://bucket or s3://")
        protocol_of(prefix)
        refuse_credentials(f"storage {redact(prefix)!r}", given)
    _options.clear()
    _options.update({prefix: dict(given) for prefix, given in options.items()})


def redact(text: str) -> str:
    """A URI, or a message with URIs, as it is stored and shown: escaped, and without user names,
    passwords, signatures and tokens.
    """
    text = escape(text)
    if _MAY_HOLD_ONE.search(text) is None:  # most URIs of rows
        return text
    for secret in _SECRETS:
        text = secret.sub(r"\1***", text)
    return text


def holds_credentials(text: str) -> bool:
    return redact(text) != escape(text)


def is_secret_name(name: str) -> bool:
    """Whether a setting of this name is a credential."""
    return _SECRET_NAME.search(name.lower().replace("-", "_")) is not None


def escape(text: str) -> str:
    r"""Text that UTF-8 can hold: the bytes of a name that are no UTF-8 stand as \xNN."""
    return text if text.isascii() else _SURROGATE.sub(_escaped, text)


def _escaped(surrogate: re.Match[str]) -> str:
    code = ord(surrogate[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def join(root: str, *names: str) -> str:
    return "/".join([root.rstrip("/"), *names])


def resolve(uri: str) -> tuple[Any, str]:
    """File system and path of a URI. Listings are not cached: other processes write, too."""
    if "\0" in uri:
        raise ConfigError(f"{redact(uri)!r}: no path has a zero byte in it; check it")
    protocol = protocol_of(uri)
    if protocol in ("http", "https"):
        try:
            urlsplit(uri).port  # noqa: B018 - raises for a wrong one
        except ValueError as error:
            raise ConfigError(f"{redact(uri)}: not an address: {error}") from None
    if protocol in ("file", "local"):
        return LocalFileSystem(), LocalFileSystem._strip_protocol(uri)
    try:
        driver = fsspec.get_filesystem_class(protocol)
    except ImportError:
        package = _DRIVERS[protocol]
        raise ConfigError(
            f"{redact(uri)}: {protocol}:// needs the package {package}: pip install {package}"
        ) from None
    options = _defaults(protocol) | driver._get_kwargs_from_urls(uri)
    # Those of the longest configured prefix; `s3://cats` is not one of `s3://cats-2`.
    prefixes = [p for p in _options if f"{uri}/".startswith(p if p.endswith("/") else f"{p}/")]
    for name, value in _options[max(prefixes, key=len)].items() if prefixes else ():
        both_are_dicts = isinstance(value, Mapping) and isinstance(options.get(name), dict)
        options[name] = options[name] | value if both_are_dicts else value
    try:
        fs = driver(**options)
    except (TypeError, ValueError, ImportError) as error:
        raise ConfigError(f"{redact(uri)}: {redact(str(error))}") from None
    if protocol in ("s3", "s3a"):
        fs.retries = 1  # only `pipeline.storage.retry` decides what is tried again
    path = str(driver._strip_protocol(uri))
    if not path and protocol not in ("memory", "hf"):
        raise ConfigError(f"{redact(uri)}: names no bucket, such as {protocol}://bucket/folder")
    return fs, path


def is_local(fs: Any) -> bool:
    return isinstance(fs, LocalFileSystem)


def is_http(fs: Any) -> bool:
    return is_protocol(fs, "http", "https")


def is_protocol(fs: Any, *protocols: str) -> bool:
    names = fs.protocol if isinstance(fs.protocol, tuple | list) else (fs.protocol,)
    return not set(protocols).isdisjoint(names)


def protocol_of(uri: str) -> str:
    """Protocol of a URI, `file` for a path; raises ConfigError if it is not supported."""
    if uri.startswith(("pipe:", "|")):
        raise ConfigError(f"{uri[:60]!r}: `pipe:` URLs run a shell and are refused")
    match = _PROTOCOL.match(uri)
    if match is None:
        return "file"
    protocol = match[1].lower()
    if "::" in protocol or (protocol not in _DRIVERS and "::" in uri):
        raise ConfigError(f"{redact(uri)!r}: chained URLs (`::`) are refused; name the file itself")
    if protocol not in _DRIVERS:
        raise ConfigError(
            f"{redact(uri)!r}: {protocol}:// is not supported. Supported are local paths and "
            + ", ".join(f"{name}://" for name in sorted(_DRIVERS))
        )
    return protocol


def _defaults(protocol: str) -> dict[str, Any]:
    if protocol in ("http", "https"):
        import aiohttp

        # By default a body that takes more than five minutes is cut.
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=_HTTP_TIMEOUT_S, sock_read=_HTTP_TIMEOUT_S
        )
        # trust_env: the proxies of the environment.
        return {"client_kwargs": {"timeout": timeout, "trust_env": True, "read_bufsize": 2**20}}
    if protocol in ("s3", "s3a"):
        retries = {"mode": os.environ.get("AWS_RETRY_MODE", "standard"), "total_max_attempts": 3}
        config = {"retries": retries, "max_pool_connections": _NUM_CONNECTIONS}
        return {
            "use_listings_cache": False,
            "config_kwargs": config,
            "default_block_size": _READ_AHEAD_BYTES,
        }
    # memory:// has no listings cache and rejects the option.
    return {} if protocol == "memory" else {"use_listings_cache": False}


def refuse_credentials(where: str, options: Mapping[str, Any]) -> None:
    """Raises ConfigError if a name or a value in `options` is that of a credential."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            refuse_credentials(f"{where}, {name}", value)
        elif name == "token" and value in _TOKEN_WORDS:
            continue
        elif is_secret_name(name) or holds_credentials(str(value)):
            raise ConfigError(
                f"{where}, {name}: credentials are not read from options, which are stored and "
                "shown. Use the environment, such as AWS_PROFILE, AWS_ACCESS_KEY_ID with "
                "AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, HF_TOKEN"
            )
