"""The log on stderr, as text and as JSON Lines."""

import json
import logging

import pytest

from pipeline.telemetry.logging import LogFormat, configure_logging

URL = "https://me:SECRET@example.org/a.tar?sig=SECRET"


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_secrets_of_addresses_are_not_logged(
    log_format: LogFormat, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)  # put back afterwards
    configure_logging(log_format, is_debug=False)
    try:
        raise ValueError(URL)
    except ValueError:
        logging.getLogger("pipeline.test").exception("cannot read %s", URL, extra={"rows": 3})
    text = capsys.readouterr().err
    assert text.count("example.org/a.tar") == 2, "in the message and in the traceback"
    assert "SECRET" not in text
    if log_format == "json":
        line = json.loads(text)
        assert {"level": "error", "logger": "pipeline.test", "rows": 3}.items() <= line.items()
        assert line["time"].endswith("+00:00")
        assert "ValueError" in line["exception"]
