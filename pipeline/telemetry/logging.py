"""The log on stderr: lines for people, or JSON Lines for what collects them."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

from pipeline import storage

LogFormat = Literal["text", "json"]


class _Text(logging.Formatter):
    """Lines without the secrets of addresses."""

    def format(self, record: logging.LogRecord) -> str:
        return storage.redact(super().format(record))


class _Json(logging.Formatter):
    """An object a line: time (RFC 3339, UTC), level, logger, message, and an exception if any."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": storage.redact(record.getMessage()),
        }
        if record.exc_info:
            line["exception"] = storage.redact(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False)


def configure_logging(log_format: LogFormat, *, is_debug: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _Json() if log_format == "json" else _Text("%(asctime)s %(message)s", "%H:%M:%S")
    )
    logging.basicConfig(level=logging.DEBUG if is_debug else logging.WARNING, handlers=[handler])
    for room in ("pipeline", "train"):
        logging.getLogger(room).setLevel(logging.DEBUG if is_debug else logging.INFO)
