from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from tasks.capture import CappedLog, printable


def test_a_short_log_is_kept_whole():
    log = CappedLog()
    log.feed(b"one\n")
    log.feed("zwei \N{SNOWMAN}\n".encode())
    assert log.text() == "one\nzwei \N{SNOWMAN}\n"
    assert log.tail() == log.text()


@given(st.lists(st.binary(max_size=40)), st.integers(1, 30), st.integers(1, 30))
def test_head_and_tail_are_exact_and_the_cut_is_counted(pieces, head_bytes, tail_bytes):
    pieces = [re.sub(rb"[^a-z]", b"x", piece) for piece in pieces]
    log = CappedLog(head_bytes, tail_bytes)
    for piece in pieces:
        log.feed(piece)
    whole = b"".join(pieces).decode()
    cut = len(whole) - head_bytes - tail_bytes
    expected = f"{whole[:head_bytes]}\n[... {cut} bytes cut ...]\n{whole[-tail_bytes:]}" if cut > 0 else whole
    assert log.text() == expected
    assert log.tail(tail_bytes) == whole[-tail_bytes:]


def test_memory_stays_within_twice_the_tail():
    log = CappedLog(10, 100)
    for _ in range(1000):
        log.feed(b"x" * 99)
    assert len(log._tail) <= 300


def test_what_confuses_a_terminal_is_taken_out():
    assert printable(b"\x1b[31mred\x1b[0m \x1b]0;title\x07\x1b]8;;http://x\x1b\\link\x9b1m") == "red link\N{REPLACEMENT CHARACTER}1m"
    assert printable("10%\r50%\r\n100%\n") == "10%\n50%\n100%\n"
    assert printable("a\x00b\x08c\x7fd\x85e\u202ef\ud800g\th") == "abcdefg\th"


@given(st.binary())
def test_anything_becomes_text_without_control_characters(data):
    text = printable(data)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)
    text.encode("utf-8")
