"""Text of others: harmless, and comparable where two failures are one."""

from __future__ import annotations

import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.report.failures import failure_groups
from orchestrator.report.plain import gist, one_line, plain, signature
from orchestrator.report.synthetic import failed, synthetic_run


@given(st.text())
def test_plain_text_controls_nothing(text):
    cleaned = plain(text)
    assert not any(unicodedata.category(letter) in {"Cc", "Cs"} and letter not in "\n\t" for letter in cleaned)
    assert plain(cleaned) == cleaned


@pytest.mark.parametrize(
    ("given_text", "expected"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]8;;http://example.invalid\x07link\x1b]8;;\x07", "link"),
        ("\x1b]0;title\x1b\\after", "after"),
        ("a\r\nb\rc", "a\nb\nc"),
        ("ab\u202edc", "abdc"),
        ("tab\tstays", "tab\tstays"),
    ],
)
def test_plain_by_hand(given_text, expected):
    assert plain(given_text) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("RuntimeError: size 32 at 0x7f01", "RuntimeError: size 64 at 0xdeadbeef"),
        ("OSError: /tmp/a/b.py is gone", "OSError: /home/someone/cache/c.py is gone"),
        ("ValueError: [1, 2, 3] is not [4]", "ValueError: [7, 8] is not [9]"),
        ("KeyError: 1f0e3dad99908345f7439f8ffabdffc4", "KeyError: 8f14e45fceea167a5a36dedd4bea2543"),
        ("GPU GPU-12345678-1234-1234-1234-123456789abc fell off", "GPU GPU-abcdef01-1234-1234-1234-123456789abc fell off"),
        ("took 12.5 s", "took 1e3 s"),
    ],
)
def test_the_same_failure_has_the_same_signature(one, other):
    assert signature(one) == signature(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("RuntimeError: a", "ValueError: a"), ("conv2d failed", "linear failed"), ("layer fc1 diverges", "layer fc2 diverges")],
)
def test_different_failures_stay_apart(one, other):
    assert signature(one) != signature(other)


def test_the_gist_of_a_traceback_is_its_exception():
    frames = 'Traceback (most recent call last):\n  File "a.py", line 3, in f\n    g()\n'
    text = frames + "torch._dynamo.exc.Unsupported: call_method\n  from user code:\n   a"
    assert gist(text) == "torch._dynamo.exc.Unsupported: call_method"
    assert gist("\n\nkilled\nby nobody") == "killed"
    assert gist("") == ""
    assert len(one_line("x" * 900)) == 200


def test_failures_are_grouped_and_the_expected_ones_come_last():
    rows = synthetic_run().rows[:8]
    made = [failed(row, 0) for row in rows[:3]] + [failed(row, 1) for row in rows[3:5]] + [rows[5]]
    made += [replace(failed(row, 2), status="skipped") for row in rows[6:]]
    groups = failure_groups(made)
    assert [(group.status, len(group.tasks)) for group in groups] == [("fail_accuracy", 3), ("fail_compile", 2), ("skipped", 2)]
    assert groups[0].log_tail
