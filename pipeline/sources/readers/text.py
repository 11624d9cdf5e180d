"""Text of label files and labels: decoded as UTF-8, stripped, and shown so that nothing hides."""

import codecs

from pipeline.errors import ConfigError

SPACES = " \t\r\n\v\f"
# The longer marks first: that of UTF-16 LE begins that of UTF-32 LE.
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def decode_text(content: bytes, where: str) -> str:
    """UTF-8 with or without a byte order mark; raises ConfigError, which names the encoding."""
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            raise _refused(where, encoding)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"no UTF-8, by byte {content[error.start]:#04x} at {error.start}; perhaps Latin-1"
        raise _refused(where, what) from None
    if "\0" in text:
        raise _refused(where, "UTF-16 without a byte order mark, or no text: it has zero bytes")
    return text


def strip(text: str) -> str:
    """Without spaces, tabs and line ends around it. Other invisible characters stay, and show."""
    return text.strip(SPACES)


def shown(text: str) -> str:
    r"""In quotes, with characters that one cannot see as escapes: "cat\u200b", "\ufeffcat"."""
    escaped = text.replace("\\", "\\\\")
    return f'"{visible(escaped)}"'


def visible(text: str) -> str:
    r"""On one line, with escapes for characters that one cannot see: cat\u200b."""
    return "".join(
        each if each == " " or each.isprintable() else each.encode("unicode_escape").decode()
        for each in text
    )


def _refused(where: str, encoding: str) -> ConfigError:
    return ConfigError(f"{where}: {encoding}; labels are read as UTF-8; convert it")
