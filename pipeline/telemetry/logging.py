"""The log on stderr: lines for people, or JSON Lines for log collectors."""

import logging
import sys
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
