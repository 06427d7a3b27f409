"""The lock of a run: one driver at a time, and one that lost it can write no more.

Two means together. Where the store is a local or shared folder, the kernel's ``flock`` on ``.lock`` frees the lock the moment its
holder dies. ``lock.json`` says who holds it, on any store, and is the fencing token: before and after each commit the driver looks
whether it still names its own token. It is written once, when the lock is taken; signs of life go into ``beat.TOKEN``, so that a holder
that was taken over, and does not know it yet, cannot overwrite its successor's name. A lock is stale when its process is gone from this
machine, a reused process id being told apart by the start time of the process, or, for a holder elsewhere, when its heartbeat is old.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import RunLockedError, StoreError
from orchestrator.files import Files, explain
from tasks.spec import SpecError, decode, encode

LOCK_FILE = "lock.json"
FLOCK_FILE = ".lock"
HEARTBEAT_S = 15.0
"""How often a driver is to call ``refresh``."""
STALE_AFTER_S = 120.0
"""A holder on another machine that gave no sign of life for this long is taken to be dead."""

_TOKEN = re.compile("[0-9a-f]{32}")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a lock. ``machine`` tells apart machines, boots and process namespaces; times are seconds since the epoch."""

    host: str
    machine: str
    pid: int
    process_started: str  # as the kernel counts it; "" where it cannot be told
    token: str
    acquired: float
    heartbeat: float

    @classmethod
    def current(cls, now: float) -> Owner:
        """This process, with a token of its own."""
        pid = os.getpid()
        return cls(socket.gethostname(), machine_identity(), pid, process_start(pid), uuid.uuid4().hex, now, now)

    def describe(self, now: float) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.acquired))
        return f"process {self.pid} on {self.host} since {since} (last sign of life {max(0.0, now - self.heartbeat):.0f} s ago)"

    def is_dead(self, now: float, stale_after_s: float = STALE_AFTER_S) -> bool:
        """Whether the holder is gone: known for this machine, concluded from its silence for another."""
        if self.machine == machine_identity():
            return process_start(self.pid) != self.process_started or not _alive(self.pid)
        return now - self.heartbeat > stale_after_s


class RunLock:
    """The lock on one run's folder, held from ``acquire`` to ``release``. A context manager."""

    def __init__(self, files: Files, owner: Owner, flock: int | None, clock: Callable[[], float]) -> None:
        self._files = files
        self._flock = flock
        self._clock = clock
        self.owner = owner

    @classmethod
    def acquire(cls, files: Files, *, stale_after_s: float = STALE_AFTER_S, clock: Callable[[], float] = time.time) -> RunLock:
        """Take the lock, or take over a stale one.

        Raises:
            RunLockedError: another driver holds it; the message names it and says what to do.
        """
        try:
            flock = _take_flock(files)
        except BlockingIOError:
            raise _refused(files, read_owner(files), clock(), stale_after_s) from None
        try:
            holder = read_owner(files)
            if holder is not None and not holder.is_dead(clock(), stale_after_s):
                raise _refused(files, holder, clock(), stale_after_s)
            lock = cls(files, Owner.current(clock()), flock, clock)
            files.write(LOCK_FILE, json.dumps(encode(lock.owner), indent=1).encode())
            if holder is not None and _TOKEN.fullmatch(holder.token):
                files.remove(_beat_file(holder.token))
            lock.check()  # of two that came at once, the later write wins
        except BaseException:
            _close(flock)
            raise
        return lock

    def check(self) -> None:
        """The fence: to be called right before and right after each commit.

        Raises:
            RunLockedError: the lock is no longer ours.
        """
        holder = _written(self._files)
        if holder is None:
            raise RunLockedError(f"the lock {self._files.at(LOCK_FILE)} was removed: this driver must not write to the run any more")
        if holder.token != self.owner.token:
            who = holder.describe(self._clock())
            raise RunLockedError(f"the run {self._files.at('')} was taken over by {who}: this driver must not write to it any more")

    def refresh(self) -> None:
        """Give a sign of life.

        Raises:
            RunLockedError: the lock is no longer ours.
        """
        self.check()
        self.owner = dataclasses.replace(self.owner, heartbeat=self._clock())
        self._files.write(_beat_file(self.owner.token), json.dumps(self.owner.heartbeat).encode(), durable=False)

    @contextlib.contextmanager
    def kept_alive(self, every_s: float = HEARTBEAT_S) -> Iterator[None]:
        """Give signs of life from another thread, while this one does something long in which it cannot."""
        over = threading.Event()
        thread = threading.Thread(target=self._beat, args=(over, every_s), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _beat(self, over: threading.Event, every_s: float) -> None:
        while not over.wait(every_s):
            try:
                self.refresh()
            except (StoreError, RunLockedError) as error:  # whoever commits next finds out, too
                log.warning("the lock could not be renewed: %s", error)

    def release(self) -> None:
        """Give the lock back, if it is still ours. One that cannot be removed goes stale by itself."""
        try:
            with contextlib.suppress(RunLockedError):
                self._files.remove(_beat_file(self.owner.token))
                self.check()
                self._files.remove(LOCK_FILE)
        except StoreError as error:
            log.warning("the lock stays behind: %s", error)
        finally:
            _close(self._flock)
            self._flock = None

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


def read_owner(files: Files) -> Owner | None:
    """Who holds the lock on the run in ``files``; None if nobody does. A lock that cannot be read counts as none."""
    owner = _written(files)
    if owner is None or not _TOKEN.fullmatch(owner.token):
        return owner
    try:
        beat = float(json.loads(files.read(_beat_file(owner.token))))
    except (FileNotFoundError, ValueError, TypeError):
        return owner
    return dataclasses.replace(owner, heartbeat=max(owner.heartbeat, beat))


def _written(files: Files) -> Owner | None:
    """The owner as of when the lock was taken."""
    try:
        return decode(Owner, json.loads(files.read(LOCK_FILE)))
    except (FileNotFoundError, ValueError, SpecError):
        return None


def _beat_file(token: str) -> str:
    return f"beat.{token}"


def machine_identity() -> str:
    """Equal for two processes exactly if a process id means the same to both."""
    return f"{socket.gethostname()}/{_boot_id()}/{_pid_namespace()}"


def _boot_id() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


def _pid_namespace() -> str:
    with contextlib.suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return ""


def process_start(pid: int) -> str:
    """When the process started, in the kernel's ticks since boot; "" if that cannot be told."""
    try:
        # The command name, in parentheses, may itself hold spaces and parentheses: count from its end.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in {"Z", "X"} else fields[19]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _take_flock(files: Files) -> int | None:
    """An open descriptor that holds the kernel's lock; None where there is no such lock.

    Raises:
        BlockingIOError: another process holds it.
    """
    path = files.local(FLOCK_FILE)
    if path is None:
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise explain("lock", str(path.parent), error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:  # a filesystem without locks: lock.json alone has to do
        os.close(descriptor)
        return None
    return descriptor


def _close(flock: int | None) -> None:
    if flock is not None:
        os.close(flock)


def _refused(files: Files, holder: Owner | None, now: float, stale_after_s: float) -> RunLockedError:
    who = holder.describe(now) if holder else "a process that has not yet said its name"
    return RunLockedError(
        f"the run {files.at('').rstrip('/')} is held by {who}; stop that driver first. A dead one is taken over by itself:"
        f" at once on its own machine, from another after {stale_after_s:.0f} s of silence; or remove {files.at(LOCK_FILE)}"
        " if you know that it is gone"
    )
