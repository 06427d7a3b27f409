"""Asks ``python -m tasks.suites.survey`` about models, in several processes at a time, and bears with those that hang or die.

The driver side imports no torch; whatever needs it happens over there. A question and its answer are one JSON line each; what a process
prints besides is kept only to say why it died.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import Any

from tasks.spec import Status

COMMAND = (sys.executable, "-m", "tasks.suites.survey")
WAITING = "wait"  # a phase without a deadline: others are at work
_ROOT = Path(__file__).parent.parent
_LAST_WORDS_BYTES = 2000

Answer = dict[str, Any]

INTERRUPTED: Mapping[str, Any] = {"status": Status.SKIPPED.value, "error": "interrupted"}


class Survey:
    """Up to ``processes`` child processes. ``fresh``: a new one for each question, so that nothing is left over from the one before.

    ``deadline_s`` is for each phase of an answer. Used as a context manager: no child outlives it.
    """

    def __init__(self, processes: int, deadline_s: float, *, fresh: bool, command: Sequence[str] = COMMAND) -> None:
        self._processes = processes
        self._deadline_s = deadline_s
        self._fresh = fresh
        self._command = command
        self._idle: queue.SimpleQueue[_Child] = queue.SimpleQueue()
        self._started: list[_Child] = []
        self._over = threading.Event()

    def __enter__(self) -> Survey:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for child in self._started:
            child.close()

    def ask(self, questions: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, Answer]]:
        """Each question's number and answer, as they come. A process that died or hung answers with a status and an error."""
        with ThreadPoolExecutor(self._processes) as pool:
            numbers = {pool.submit(self._answer, question): number for number, question in enumerate(questions)}
            try:
                for future in as_completed(numbers):
                    yield numbers[future], future.result()
            except BaseException:
                self.__exit__()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _answer(self, question: Mapping[str, Any]) -> Answer:
        if self._over.is_set():
            return dict(INTERRUPTED)
        child = self._child()
        answer = child.ask(question, self._deadline_s)
        if self._fresh or not child.alive:
            child.close()
        else:
            self._idle.put(child)
        return answer

    def _child(self) -> _Child:
        with suppress(queue.Empty):
            return self._idle.get_nowait()
        child = _Child(self._command, threads=max(1, (os.cpu_count() or 1) // self._processes))
        self._started.append(child)
        return child


class _Child:
    """One process of the survey, in a group of its own."""

    def __init__(self, command: Sequence[str], threads: int) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
            env=_environment(threads),
            start_new_session=True,
        )
        self._timed_out = False

    @property
    def alive(self) -> bool:
        return self._process.poll() is None and not self._timed_out

    def ask(self, question: Mapping[str, Any], deadline_s: float) -> Answer:
        assert self._process.stdin is not None
        phase = "start"
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        while line := self._line(None if phase == WAITING else deadline_s):
            said: Answer = json.loads(line)
            if "phase" not in said:
                return said
            phase = said["phase"]
        if self._timed_out:
            return {"status": Status.TIMEOUT.value, "error": f"still in phase {phase} after {deadline_s:g} s"}
        code = self._process.wait()
        return {"status": Status.CRASH.value, "error": f"the process died in phase {phase} ({_ending(code)}): {self._last_words()}"}

    def close(self) -> None:
        self._kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()

    def _line(self, deadline_s: float | None) -> str:
        """The next line; empty when the process has ended or did not say anything in time, which ends it."""
        assert self._process.stdout is not None
        if deadline_s is None:
            return self._process.stdout.readline()
        timer = threading.Timer(deadline_s, self._give_up)
        timer.start()
        try:
            return self._process.stdout.readline()
        finally:
            timer.cancel()

    def _give_up(self) -> None:
        self._timed_out = True
        self._kill()

    def _kill(self) -> None:
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _last_words(self) -> str:
        end = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, end - _LAST_WORDS_BYTES))
        lines = self._log.read().decode("utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit status {code}"


def _environment(threads: int) -> dict[str, str]:
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
    }
