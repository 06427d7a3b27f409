"""Text that others wrote (error messages, names, log tails) made harmless and comparable. Standard library only."""

from __future__ import annotations

import re

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[PX^_].*?\x1b\\|[@-Z\\-_])", re.DOTALL)
# Unicode's direction marks can make a terminal or a page show text in another order than it is stored.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_EXCEPTION = re.compile(r"^(?:[A-Za-z_]\w*\.)*\w*(?:Error|Exception|Exit|Interrupt|Warning|Failure|Unsupported|Timeout)\w*\b(?::|$)")
_CHANGEABLE = (
    (re.compile(r"\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b"), "<uuid>"),
    (re.compile(r"\b0x[0-9a-fA-F]+\b"), "<address>"),
    (re.compile(r"(?:file://)?(?:[A-Za-z]:)?(?:[\\/][\w.@+~-]+){2,}[\\/]?"), "<path>"),
    (re.compile(r"\b(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{12,}\b"), "<hash>"),
    (re.compile(r"(?<![A-Za-z_])\d+(?:[.,]\d+)*(?:e[+-]?\d+)?"), "<n>"),
    (re.compile(r"<n>(?:(?:, ?|x| x )<n>)+"), "<n>"),
)
SIGNATURE_LENGTH = 200


def plain(text: str) -> str:
    """``text`` without terminal codes, control characters (but newlines and tabs) and direction marks."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text.replace("\r\n", "\n").replace("\r", "\n")))


def one_line(text: str, length: int = SIGNATURE_LENGTH) -> str:
    """``text`` on one line of at most ``length`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def gist(error: str) -> str:
    """The line of an error that says what happened: the last one that names an exception, else the first with text."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    named = [line for line in lines if _EXCEPTION.match(line)]
    return one_line(named[-1] if named else lines[0]) if lines else ""


def signature(error: str) -> str:
    """``gist`` with numbers, addresses, paths and hashes replaced, so that the same failure of two models reads the same."""
    text = gist(error)
    for pattern, name in _CHANGEABLE:
        text = pattern.sub(name, text)
    return text
