"""The log on stderr: lines for people, or JSON Lines for log collectors.

Nothing that is logged or raised shows a secret, and any text can be printed.
"""

import codecs
import io
import logging
import sys
import threading
import traceback
from types import TracebackType
from typing import Literal

from pythonjsonlogger.json import JsonFormatter

from pipeline import storage

LogFormat = Literal["text", "json"]

_TEXT = logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")
# Time (RFC 3339, UTC), level, logger, message, and exception if there is one.
_JSON = JsonFormatter(
    ["level", "name", "message"],
    rename_fields={"name": "logger", "exc_info": "exception"},
    timestamp="time",
    json_ensure_ascii=False,
)


class _Redact(logging.Filter):
    """Removes the secrets of addresses from messages and tracebacks; adds `level` in lower case."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.level = record.levelname.lower()
        record.msg, record.args = storage.redact(record.getMessage()), None
        if record.exc_info:
            record.exc_text = storage.redact(_TEXT.formatException(record.exc_info))
            record.exc_info = None  # formatters then take the text
        return True


def configure_logging(log_format: LogFormat, *, is_debug: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_Redact())
    handler.setFormatter(_JSON if log_format == "json" else _TEXT)
    logging.basicConfig(level=logging.DEBUG if is_debug else logging.WARNING, handlers=[handler])
    for package in ("pipeline", "train"):
        logging.getLogger(package).setLevel(logging.DEBUG if is_debug else logging.INFO)


def show_no_secrets() -> None:
    """Makes tracebacks show no secret, and output hold any name, also one that is no UTF-8."""
    sys.excepthook = _print_redacted
    threading.excepthook = lambda args: _print_redacted(
        args.exc_type, args.exc_value, args.exc_traceback
    )
    codecs.register_error("infineg", _escape)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="infineg")


def _print_redacted(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    lines = traceback.format_exception(kind, error, trace)
    sys.stderr.write(storage.redact("".join(lines)))


def _escape(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError), "it is for output"
    text = storage.escape(error.object[error.start : error.end])
    return text.encode("ascii", "backslashreplace").decode(), error.end
