"""The results store: a folder, or an object-store URI, with one sub-folder per run. The only writer of Parquet in the project.

    DIR/RUN_ID/run.json          what the run is and how far it came
    DIR/RUN_ID/plan.jsonl.gz     its tasks, complete
    DIR/RUN_ID/tasks/*.parquet   one row per terminal task
    DIR/RUN_ID/samples/*.parquet one row per timed iteration
    DIR/RUN_ID/blocks/*.parquet  one row per block of them: how the machine was
    DIR/RUN_ID/logs/             one log per row that has one
    DIR/RUN_ID/spool/            outcomes that no driver has stored yet
    DIR/RUN_ID/lock.json         the driver that may write; beat.TOKEN: when it last said that it lives
    DIR/bundles/                 compile caches that tasks keep from run to run, where a manifest asks for it

Reading needs no lock and changes nothing. Writing needs the run's lock, which is looked at before each commit.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import re
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator import schema
from orchestrator.compact import compact
from orchestrator.errors import RunLockedError, StoreError, UsageError
from orchestrator.files import Files, open_files
from orchestrator.lock import STALE_AFTER_S, Owner, RunLock, read_owner
from orchestrator.parts import Part, Parts
from orchestrator.record import (
    PLAN_FILE,
    RECORD_FILE,
    PlannedTask,
    RunRecord,
    RunState,
    Session,
    plan_bytes,
    read_plan,
    read_record,
    record_bytes,
)
from orchestrator.spool import Spool
from tasks.spec import Outcome, Samples, Status, TaskSpec, slug

BUNDLES = "bundles"
LATEST = "latest"
_PROBE_FILE = "writable.probe"
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

log = logging.getLogger(__name__)


class Store:
    """All runs at one place. Need not exist; ``create`` makes it."""

    def __init__(self, root: str) -> None:
        self._files = open_files(root)
        self.root = root
        self.damaged: dict[str, str] = {}
        """The runs that ``runs`` has left out so far, with the reason."""

    @property
    def bundles_path(self) -> Path | None:
        """Where workers keep compile caches from run to run; None for an object store."""
        return self._files.local(BUNDLES)

    def runs(self) -> list[RunRecord]:
        """Every run, oldest first. One whose record is damaged is left out and named in the log."""
        found = []
        for run_id in self._files.folders():
            try:
                found.append(self._run(run_id).record)
            except FileNotFoundError:
                continue
            except StoreError as error:
                self.damaged[run_id] = str(error)
                log.warning("%s; the run is left out", error)
        return sorted(found, key=lambda record: (record.started, record.run_id))

    def check_ready(self, run_id: str | None, *, resume: bool) -> None:
        """Refuse at once what ``create`` would refuse, and a place where no run can be stored.

        Raises:
            UsageError: the run exists and is not to be resumed, or its id is no folder name.
            StoreError: this process cannot write here.
        """
        if run_id is not None:
            check_run_id(run_id)
            if not resume and self._run(run_id).exists():
                raise self._exists(run_id)
        self.check_writable()

    def check_writable(self) -> None:
        """Write something and remove it again.

        Raises:
            StoreError: this process cannot write here.
        """
        self._files.write(_PROBE_FILE, b"", durable=False)
        self._files.remove(_PROBE_FILE)

    def resolve(self, name: str) -> RunStore:
        """The run called ``name``, which may be ``latest``, a run id, or the beginning of exactly one run id.

        Raises:
            UsageError: there is none, or several begin so.
            StoreError: its record is damaged.
        """
        run = self._run(name) if _RUN_ID.fullmatch(name) else None
        if run is not None and run.exists():
            return run
        runs = [record.run_id for record in self.runs()]
        if not runs:
            raise UsageError(f"{self.root}: there are no runs; start one with `sweep run MANIFEST --results {self.root}`")
        if name == LATEST:
            return self._run(runs[-1])
        matches = [run_id for run_id in runs if name and run_id.startswith(name)]
        if len(matches) == 1:
            return self._run(matches[0])
        raise UsageError(_unknown_run(self.root, name, matches, runs))

    def opened(self, record: RunRecord) -> RunStore:
        """The run of a record that ``runs`` gave, which is not read a second time."""
        run = self._run(record.run_id)
        run.know(record)
        return run

    def create(self, record: RunRecord, plan: Sequence[PlannedTask]) -> RunStore:
        """A new run, locked for this process.

        Raises:
            UsageError: the run exists, or its id is no folder name.
            RunLockedError: another driver is creating it.
        """
        check_run_id(record.run_id)
        run = self._run(record.run_id)
        lock = RunLock.acquire(run.files)
        try:
            if run.exists():
                raise self._exists(record.run_id)
            run.files.write(PLAN_FILE, plan_bytes(plan))
            run.files.write(RECORD_FILE, record_bytes(dataclasses.replace(record, planned=len(plan))))
        except BaseException:
            lock.release()
            raise
        run.adopt(lock)
        return run

    def _exists(self, run_id: str) -> UsageError:
        return UsageError(f"run {run_id} exists in {self.root}; add --resume to go on with it, or choose another --run-id")

    def _run(self, run_id: str) -> RunStore:
        return RunStore(self._files.child(run_id), run_id)


def check_run_id(run_id: str) -> None:
    """Refuse what is no name of a folder.

    Raises:
        UsageError: with what it may be.
    """
    if run_id == LATEST:
        raise UsageError(f"run id '{LATEST}' is reserved: it stands for the newest run; choose another, or leave it out with --resume")
    if not _RUN_ID.fullmatch(run_id):
        raise UsageError(f"run id {run_id!r}: use letters, digits, '.', '_' and '-', at most 100, a letter or digit first")


def _unknown_run(root: str, name: str, matches: Sequence[str], runs: Sequence[str]) -> str:
    if matches:
        return f"run {name!r} in {root} is ambiguous: {', '.join(matches)}"
    close = difflib.get_close_matches(name, runs, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    newest = runs[-8:][::-1]
    more = f" and {len(runs) - len(newest)} older ones" if len(runs) > len(newest) else ""
    return f"there is no run {name!r} in {root}{hint}; there are: {', '.join(newest)}{more}, and 'latest'"


class RunStore:
    """One run. Not thread-safe."""

    def __init__(self, files: Files, run_id: str) -> None:
        self.files = files
        self.run_id = run_id
        self._record: RunRecord | None = None
        self._lock: RunLock | None = None
        self._parts: Parts | None = None
        self._next_number = 0

    # --- reading ----------------------------------------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Whether the run has a record; a folder alone is no run."""
        try:
            self.files.read(RECORD_FILE)
        except FileNotFoundError:
            return False
        return True

    @property
    def record(self) -> RunRecord:
        """What the run says of itself, as of the first look; ``reload`` looks again."""
        return self._record or self.reload()

    def know(self, record: RunRecord) -> None:
        """Take ``record`` for what the run says of itself."""
        self._record = record

    def reload(self) -> RunRecord:
        """Read the record anew."""
        self._record = read_record(self.files.read(RECORD_FILE), self.files.at(RECORD_FILE))
        return self._record

    def plan(self) -> tuple[PlannedTask, ...]:
        """The planned tasks, in order."""
        try:
            return read_plan(self.files.read(PLAN_FILE), self.files.at(PLAN_FILE))
        except FileNotFoundError as error:
            raise StoreError(f"{self.files.at(PLAN_FILE)} is missing: the run cannot be resumed or verified") from error

    def rows(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The terminal rows, exactly one per task, with all columns of ``schema.ROWS`` or those named, in the schema's order."""
        return self._reader().rows(columns)

    def samples(self, task_ids: Sequence[str] | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """The samples behind the rows, of all tasks or of those named; each task's in the order in which they were taken."""
        return self._reader().samples(task_ids, columns)

    def blocks(self, task_ids: Sequence[str] | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """The state of the machine at each block behind the rows, like ``samples``. Runs of the first version have none."""
        return self._reader().blocks(task_ids, columns)

    def samples_of(self, task_id: str) -> Samples:
        """One task's samples, as its worker made them."""
        return schema.samples_of(self.samples([task_id], schema.SAMPLE_COLUMNS))

    def terminal(self) -> dict[str, tuple[Status, str]]:
        """task_id -> (status, task digest), for every task that has a row."""
        rows = self.rows(("task_id", "status", "task_digest"))
        return {row["task_id"]: (Status(row["status"]), row["task_digest"]) for row in rows.to_pylist()}

    def attempts(self) -> list[tuple[str, int]]:
        """(task_id, attempt) of every stored row, of those too that a later attempt of their task beats."""
        return self._reader().attempts()

    def beaten(self) -> set[str]:
        """The tasks that have a row which a later one beats: a query over the bare files would find both."""
        return set().union(*self._reader().beaten().values())

    def damaged(self) -> dict[str, str]:
        """The files that reading has left out so far, with the reason."""
        return dict(self._reader().damaged)

    def read_log(self, path: str) -> str:
        """The log at a row's ``log`` path.

        Raises:
            StoreError: it is missing, or the path, which anybody may have written, leads elsewhere.
        """
        try:
            return self.files.read(_log_path(path)).decode("utf-8", "replace")
        except FileNotFoundError as error:
            raise StoreError(f"{self.files.at(path)} is missing") from error

    def holder(self) -> Owner | None:
        """The driver whose lock lies on the run, dead or alive."""
        return read_owner(self.files)

    @property
    def spool_path(self) -> Path | None:
        """Where supervisors leave outcomes; None for a run in an object store."""
        return self.files.local("spool")

    def _reader(self) -> Parts:
        if self._parts is None:
            self._parts = Parts(self.files, schema.file_metadata(self.record.manifest_digest), fence=self._fence)
        return self._parts

    # --- writing ----------------------------------------------------------------------------------------------------------------

    def acquire(self, *, stale_after_s: float = STALE_AFTER_S) -> list[str]:
        """Take the run's lock and put in order what a dead driver left; the paths of damaged files that were set aside.

        Raises:
            RunLockedError: another driver holds the run.
        """
        return self.adopt(RunLock.acquire(self.files, stale_after_s=stale_after_s))

    def adopt(self, lock: RunLock) -> list[str]:
        """``acquire`` with a lock that is already taken."""
        self._lock = lock
        parts = self._reader()
        with lock.kept_alive():
            if spool := self._spool():
                spool.create()
                spool.clear_abandoned()
            set_aside = parts.set_aside_damaged()
            parts.remove_dead()
            self._next_number = parts.next_number()
        for path in set_aside:
            log.warning("%s was damaged and is set aside; its tasks count as not done", path)
        return set_aside

    def append(self, batch: Sequence[tuple[TaskSpec, Outcome]]) -> None:
        """Make the rows, samples, blocks and logs of ``batch`` durable: all of it, or, after an error, nothing that a reader would see.

        Raises:
            RunLockedError: this driver does not hold the lock, or not any more.
            StoreError: the batch cannot be written.
        """
        if not batch:
            return
        if len({task.task_id for task, _ in batch}) != len(batch):
            raise ValueError("a batch holds a task twice")
        self._fence()
        rows = [schema.row_of(self.run_id, task, outcome, self._write_log(outcome)) for task, outcome in batch]
        try:
            tables = schema.rows_table(rows), schema.samples_table(self.run_id, batch), schema.blocks_table(self.run_id, batch)
        except (pa.ArrowException, OverflowError, TypeError) as error:
            raise StoreError(f"an outcome does not fit the schema of {self.files.at('')}: {error}") from error
        self._commit(*tables)

    def carry(self, source: RunStore, task_ids: Collection[str]) -> None:
        """Take over rows, samples, blocks and logs of another run, marked as carried from the run that measured them.

        Raises:
            RunLockedError, StoreError: as ``append``.
        """
        self._fence()
        rows = schema.task_rows(source.rows().filter(pc.is_in(pc.field("task_id"), pa.array(sorted(task_ids), pa.string()))))
        if not rows:
            return
        marked = [
            dataclasses.replace(
                row,
                run_id=self.run_id,
                log=self._carry_log(source, row.log) if row.log else None,
                carried=True,
                carried_from=row.carried_from or source.run_id,
                manifest_digest=self.record.manifest_digest or None,
            )
            for row in rows
        ]
        details = [read([row.task_id for row in rows]) for read in (source.samples, source.blocks)]
        self._commit(schema.rows_table(marked), *map(self._renamed, details))

    def _carry_log(self, source: RunStore, path: str) -> str | None:
        try:
            self.files.write(_log_path(path), source.files.read(path), durable=False)
        except FileNotFoundError:  # somebody made room; no number depends on it
            log.warning("%s is missing, and is not taken over", source.files.at(path))
            return None
        return path

    def compact(self) -> bool:
        """Merge the run's files into one of each kind; False if there was nothing to merge."""
        self._fence()
        merged = compact(self._reader())
        self._next_number = self._reader().next_number()
        return merged

    def set_state(self, state: RunState, exit_code: int | None = None) -> None:
        """Record how far the run came, and, unless it is running, when."""
        self._rewrite(self.reload().came_to(state, exit_code, time.time()))

    def begin_session(self, session: Session) -> None:
        """Record that this driver goes to work."""
        record = self.reload()
        self._rewrite(dataclasses.replace(record, sessions=(*record.sessions, session)))

    def _rewrite(self, record: RunRecord) -> None:
        self._fence()
        self.files.write(RECORD_FILE, record_bytes(record))
        self._record = record

    def ingest_orphans(self) -> list[Outcome]:
        """The outcomes in the spool that belong to the plan and have no row of their own or a later attempt, by task and attempt."""
        spool = self._spool()
        outcomes = spool.outcomes() if spool else []
        if not outcomes:
            return []
        rows = self.rows(("task_id", "attempt"))
        done = dict(zip(rows.column("task_id").to_pylist(), rows.column("attempt").to_pylist(), strict=True))
        planned = {entry.task.task_id for entry in self.plan()}
        return [outcome for outcome in outcomes if outcome.task_id in planned and outcome.attempt > done.get(outcome.task_id, -1)]

    def find_spooled(self, task_id: str, attempt: int) -> Outcome | None:
        """What this attempt has left in the spool."""
        spool = self._spool()
        return spool.find(task_id, attempt) if spool else None

    def clear_spool(self, attempts: Iterable[tuple[str, int]]) -> None:
        """Remove the spooled outcomes of these (task_id, attempt), and of earlier attempts, once they are stored or decided otherwise."""
        if spool := self._spool():
            self._fence()
            spool.clear(attempts)

    def kept_alive(self) -> AbstractContextManager[None]:
        """Refresh the lock by itself, for as long as something long is done that does not."""
        return self._held().kept_alive()

    def refresh_lock(self) -> None:
        """Show that this driver lives; to be called every ``lock.HEARTBEAT_S`` at most.

        Raises:
            RunLockedError: the lock is no longer this driver's.
        """
        self._held().refresh()

    def close(self) -> None:
        """Release the lock, if this process holds it."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> RunStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _held(self) -> RunLock:
        if self._lock is None:
            raise RunLockedError(f"this process does not hold the lock of run {self.run_id}")
        return self._lock

    def _fence(self) -> None:
        self._held().check()

    def _commit(self, rows: pa.Table, samples: pa.Table, blocks: pa.Table) -> None:
        number, self._next_number = self._next_number, self._next_number + 1
        self._reader().commit(Part.new(number), rows, samples, blocks)

    def _renamed(self, table: pa.Table) -> pa.Table:
        """Another run's samples or blocks as this run's."""
        own = pa.array([self.run_id] * table.num_rows, pa.string()).dictionary_encode()
        return table.set_column(0, table.schema.field("run_id"), own)

    def _write_log(self, outcome: Outcome) -> str | None:
        if not outcome.log:
            return None
        path = f"logs/{slug(outcome.task_id)}.{outcome.attempt}.log"
        # Not worth a sync per log: a log is for reading, and no number depends on it.
        self.files.write(path, outcome.log.encode("utf-8", "replace"), durable=False)
        return path

    def _spool(self) -> Spool | None:
        folder = self.spool_path
        return Spool(folder) if folder else None


def _log_path(path: str) -> str:
    """``path``, if it is the name of a log as this store gives them."""
    if not re.fullmatch(r"logs/[A-Za-z0-9._-]+\.log", path):
        raise StoreError(f"a row names {path!r} as its log, which is no log of a run: the results were tampered with")
    return path


def finished_tasks(root: str, manifest_name: str | None = None) -> dict[str, str]:
    """task_id -> task digest of what the newest run (of that manifest) has decided; infrastructure failures decide nothing."""
    store = Store(root)
    run_ids = [record.run_id for record in store.runs() if manifest_name in {None, record.manifest} and not record.aa]
    if not run_ids:
        return {}
    terminal = store.resolve(run_ids[-1]).terminal()
    return {task_id: digest for task_id, (status, digest) in terminal.items() if status is not Status.INFRA_ERROR}
