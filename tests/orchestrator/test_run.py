"""A run against a cluster that changes while it is looked at, a store that fails, and people who interrupt."""

from __future__ import annotations

import dataclasses
import io
import shlex
import signal
from types import SimpleNamespace

import pytest
from pyarrow import parquet
from rich.console import Console

from orchestrator import driver as driving
from orchestrator import run as runs
from orchestrator.costs import Cost
from orchestrator.errors import ExitCode, PreflightError, RunLockedError, StoreError, UsageError
from orchestrator.events import Lost
from orchestrator.files import LocalFiles
from orchestrator.lock import RunLock
from orchestrator.manifest import load_manifest
from orchestrator.plan import PlannedTask as CostedTask
from orchestrator.plan import Reason
from orchestrator.policy import RULES, Policy
from orchestrator.record import RunState
from orchestrator.request import FAILED, RunRequest, resume_command
from orchestrator.sessions import Site
from orchestrator.sharing import Sharing
from orchestrator.store import Store
from orchestrator.sweep import SweepTask
from tasks.preload import modules_of
from tasks.probe import probe
from tasks.spec import Attempt, FailureClass, ModelSpec, ResourceSpec, Status
from tasks.spool import leave
from tests.orchestrator.fakes import NODE, FakeCluster, passed, task

TOYS = """\
schema_version: 1
name: toys
matrix: {dtype: [float32]}
execution: {device: cpu, num_cpus: 1}
suites:
  toy: [pass.1, pass.2]
"""


class Changing(FakeCluster):
    """``probe`` asks one node after the other; ``alive`` is what is left then."""

    def __init__(self, answers, alive):
        super().__init__()
        self.answers, self.alive = iter(answers), alive

    def nodes(self):
        return self.alive

    def probe(self):
        return next(self.answers)


def start(tmp_path, cluster):
    (tmp_path / "toys.yaml").write_text(TOYS)
    request = RunRequest(tmp_path / "toys.yaml", str(tmp_path / "out"), "r")
    return runs.run(request, Console(file=io.StringIO()), connect=lambda _: cluster).ending.exit_code


def test_a_node_that_dies_while_it_is_asked_does_not_refuse_the_plan(tmp_path):
    assert start(tmp_path, Changing([{NODE.name: probe(), "dead": "the node does not exist any more"}], (NODE,))) is ExitCode.PASSED


def test_nodes_are_asked_again_if_all_of_them_were_replaced(tmp_path):
    assert start(tmp_path, Changing([{"dead": "gone"}, {NODE.name: probe()}], (NODE,))) is ExitCode.PASSED


def test_a_node_that_lives_and_cannot_answer_does(tmp_path):
    broken = dataclasses.replace(NODE, name="broken")
    with pytest.raises(PreflightError, match="broken cannot run this project's code: no module"):
        start(tmp_path, Changing([{NODE.name: probe(), "broken": "no module"}], (NODE, broken)))


def test_a_cluster_without_a_node_is_refused(tmp_path):
    with pytest.raises(PreflightError, match="no live node"):
        start(tmp_path, Changing([{}], ()))


# --- failures of the store --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alive", [(NODE,), (dataclasses.replace(NODE, num_cpus=0.0),)])
def test_a_plan_for_gpus_is_refused_where_there_is_none(tmp_path, alive):
    """With models that have to be estimated for the GPUs of a node, which are none."""
    (tmp_path / "gpu.yaml").write_text(TOYS.replace("device: cpu", "device: cuda").replace("toy: [pass.1, pass.2]", "timm: [lcnet_050]"))
    cluster = Changing([{NODE.name: probe()}], alive)
    with pytest.raises(PreflightError, match="1 GPUs where the largest node has 0"):
        runs.run(RunRequest(tmp_path / "gpu.yaml", str(tmp_path / "out"), "r"), Console(file=io.StringIO()), connect=lambda _: cluster)


class Toys(FakeCluster):
    """A node that answers."""

    def probe(self):
        return {NODE.name: probe()}


def request(tmp_path, **fields):
    (tmp_path / "toys.yaml").write_text(TOYS)
    return RunRequest(tmp_path / "toys.yaml", str(tmp_path / "out"), "r", **fields)


def drive(wanted, cluster):
    return runs.run(wanted, Console(file=io.StringIO()), connect=lambda _: cluster)


def no_space_for(monkeypatch, wanted):
    """No file whose path has ``wanted`` in it can be written from now on."""
    write = LocalFiles.write

    def full(files, name, data, **options):
        if wanted in files.at(name):
            raise StoreError(f"cannot write {name}: the disk is full")
        write(files, name, data, **options)

    monkeypatch.setattr(LocalFiles, "write", full)
    monkeypatch.setattr(driving, "LAST_TRIES_S", (0.0,))


@pytest.mark.parametrize("what", ["stories/", "standing.json"])
def test_a_journal_that_cannot_be_written_costs_no_row(tmp_path, monkeypatch, what):
    no_space_for(monkeypatch, what)
    ended = drive(request(tmp_path), Toys())
    assert (ended.ending.exit_code, ended.go_on) == (ExitCode.PASSED, None)
    assert len(Store(str(tmp_path / "out")).resolve("r").terminal()) == 2


class Filling(Toys):
    """The disk fills up when the first attempt is polled."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.polled = lambda: no_space_for(monkeypatch, "/r/")


def test_a_full_disk_ends_in_the_command_that_goes_on_which_does(tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as full:
        ended = drive(request(tmp_path), Filling(full))
    assert ended.ending.exit_code is ExitCode.INFRASTRUCTURE
    assert "disk is full" in ended.ending.reason
    assert ended.go_on == f"sweep run {tmp_path}/toys.yaml --results {tmp_path}/out --run-id r --resume"
    assert "run r is not marked as ended" in caplog.text
    assert drive(request(tmp_path, resume=True), Toys()).ending.exit_code is ExitCode.PASSED


def test_a_run_whose_end_cannot_be_recorded_is_no_success(tmp_path, monkeypatch):
    conclude = runs._conclude

    def with_full_disk(*arguments):
        no_space_for(monkeypatch, "run.json")
        return conclude(*arguments)

    monkeypatch.setattr(runs, "_conclude", with_full_disk)
    ended = drive(request(tmp_path), Toys())
    assert ended.ending.exit_code is ExitCode.INFRASTRUCTURE
    assert ended.go_on


# --- whatever breaks a run off ----------------------------------------------------------------------------------------------------


def notes(error):
    return getattr(error, "__notes__", [])


def state(tmp_path):
    return Store(str(tmp_path / "out")).resolve("r").record.state


@pytest.fixture
def heeded():
    """SIGINT is: a shell starts its background jobs with that signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_outside_the_loop_ends_a_run_that_says_how_to_go_on(tmp_path, monkeypatch, heeded, number):
    monkeypatch.setattr(runs, "_conclude", lambda *_: signal.raise_signal(number))
    before = signal.getsignal(signal.SIGTERM)
    cluster = Toys()
    with pytest.raises(KeyboardInterrupt) as interruption:
        drive(request(tmp_path), cluster)
    assert notes(interruption.value) == [f"to go on: sweep run {tmp_path}/toys.yaml --results {tmp_path}/out --run-id r --resume"]
    assert state(tmp_path) is RunState.INTERRUPTED
    assert cluster.closed
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), StoreError("the store is gone")])
def test_an_error_in_the_middle_says_how_to_go_on(tmp_path, error):
    def fail():
        raise error

    cluster = Toys()
    cluster.polled = fail
    with pytest.raises(type(error)) as raised:
        drive(request(tmp_path), cluster)
    assert len(notes(raised.value)) == 1
    assert state(tmp_path) is RunState.INCOMPLETE
    assert drive(request(tmp_path, resume=True), Toys()).ending.exit_code is ExitCode.PASSED


def test_a_driver_that_was_taken_over_leaves_the_record_to_the_other(tmp_path, monkeypatch):
    def look(_lock):
        raise RunLockedError("taken over")

    cluster = Toys()
    cluster.polled = lambda: monkeypatch.setattr(RunLock, "check", look)
    with pytest.raises(RunLockedError):
        drive(request(tmp_path), cluster)
    assert state(tmp_path) is RunState.RUNNING


def test_a_refused_resume_says_how_to_try_again(tmp_path):
    drive(request(tmp_path), Toys())
    with Store(str(tmp_path / "out")).resolve("r") as held:
        held.acquire()
        with pytest.raises(RunLockedError) as refusal:
            drive(request(tmp_path, resume=True), Toys())
    assert notes(refusal.value)[0].endswith("--resume")


def test_the_command_that_goes_on_is_complete(tmp_path):
    chosen = frozenset({Status.CRASH, Status.OOM})
    wanted = request(tmp_path, address="ray://head:10001", resume=True, rerun=chosen, aa=True, log_json=True)
    words = shlex.split(resume_command(wanted, "r"))
    assert {"--aa", "--log-json", "--resume"} <= set(words)
    assert words[words.index("--address") + 1] == "ray://head:10001"
    assert [words[index + 1] for index, word in enumerate(words) if word == "--rerun"] == ["crash", "oom"]
    everything = dataclasses.replace(wanted, rerun=FAILED | {Status.PASS})
    assert resume_command(everything, "r").endswith("--retry-failed --rerun pass")
    named = dataclasses.replace(everything, rerun=frozenset({Status.OOM}), rerun_tasks=frozenset({"toy/a/amp", "b c"}))
    assert resume_command(named, "r").endswith("--rerun oom --rerun 'b c' --rerun toy/a/amp")


# --- infrastructure failures and their rows ---------------------------------------------------------------------------------------


class Losing(Toys):
    """Loses every attempt at the task that is launched first; when it loses attempt ``at``, ``left`` has left a result all the same."""

    def __init__(self, at=0, left=0, folder=None):
        super().__init__(self.lose)
        self.victim, self.at, self.left, self.folder = None, at, left, folder

    def lose(self, task_id, attempt):
        self.victim = self.victim or task_id
        if task_id != self.victim:
            return None
        if attempt == self.at:
            leave(passed(task_id, self.left), Attempt("r", self.left, str(self.folder)))
        return [Lost(0.0, task_id, attempt, FailureClass.WORKER_LOST, "killed")]


@pytest.fixture
def one_retry(monkeypatch):
    """At once."""
    at_once = RULES | {FailureClass.WORKER_LOST: dataclasses.replace(RULES[FailureClass.WORKER_LOST], backoff_s=0.0)}
    monkeypatch.setattr(driving, "TICK_S", 0.0)
    monkeypatch.setattr(runs, "Policy", lambda **_: Policy(infrastructure_retries=1, rules=at_once))


def attempts(tmp_path):
    """Those of all rows that a query over the bare files finds."""
    files = (tmp_path / "out" / "r" / "tasks").glob("*.parquet")
    return sorted(row["attempt"] for file in files for row in parquet.read_table(file).to_pylist())


def test_a_finished_run_with_an_infrastructure_failure_says_how_to_run_it_again_and_then_has_one_row(tmp_path, one_retry):
    ended = drive(request(tmp_path, rerun=frozenset({Status.CRASH}), rerun_tasks=frozenset({"toy"})), Losing())
    assert (ended.ending.exit_code, ended.ending.reason) == (ExitCode.INFRASTRUCTURE, "finished")
    assert ended.go_on.endswith("--run-id r --resume"), "what was chosen to be run again has been"
    assert attempts(tmp_path) == [1, 2]
    assert drive(request(tmp_path, resume=True), Toys()).ending.exit_code is ExitCode.PASSED
    assert attempts(tmp_path) == [1, 3]


@pytest.mark.parametrize(("at", "left"), [(1, 1), (2, 2), (2, 1)])
def test_a_result_in_the_spool_counts_more_than_the_loss_of_its_attempt_or_of_a_later_one(tmp_path, one_retry, at, left):
    spool = tmp_path / "out" / "r" / "spool"
    assert drive(request(tmp_path), Losing(at, left, spool)).ending.exit_code is ExitCode.PASSED
    assert attempts(tmp_path) == [1, left]
    assert list(spool.iterdir()) == []


def test_only_a_verdict_of_an_earlier_attempt_counts(tmp_path, one_retry):
    class LeavesRubbish(Losing):
        def lose(self, task_id, attempt):
            events = super().lose(task_id, attempt)
            for file in self.folder.glob("*.1.json"):
                file.write_text(
                    file.read_text().replace('"pass"', '"infra_error"').replace('"failure_class": null', '"failure_class": "device"')
                )
            return events

    spool = tmp_path / "out" / "r" / "spool"
    assert drive(request(tmp_path), LeavesRubbish(2, 1, spool)).ending.exit_code is ExitCode.INFRASTRUCTURE
    assert attempts(tmp_path) == [1, 2]


@pytest.mark.parametrize(
    ("run_id", "results", "error", "words"),
    [
        ("a b", "out", UsageError, "run id 'a b': use letters"),
        ("latest", "out", UsageError, "run id 'latest' is reserved"),
        ("r", "out", UsageError, "run r exists in .*; add --resume"),
        ("s", "toys.yaml/out", StoreError, "a part of the path is a file"),
    ],
)
def test_what_is_known_at_once_is_refused_before_a_cluster_is_started(tmp_path, run_id, results, error, words):
    start(tmp_path, Changing([{NODE.name: probe()}], (NODE,)))
    request = RunRequest(tmp_path / "toys.yaml", str(tmp_path / results), run_id)
    with pytest.raises(error, match=words):
        runs.run(request, Console(file=io.StringIO()), connect=lambda _: pytest.fail("a cluster was started"))


def test_a_resume_waits_for_the_lock_of_a_driver_that_is_going(tmp_path, monkeypatch):
    start(tmp_path, Changing([{NODE.name: probe()}], (NODE,)))
    held = RunLock.acquire(LocalFiles(tmp_path / "out" / "r"))
    waits = []

    def wait(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            held.release()

    request = RunRequest(tmp_path / "toys.yaml", str(tmp_path / "out"), "r", resume=True)
    with pytest.raises(RunLockedError):
        runs.run(request, Console(file=io.StringIO()), connect=lambda _: Changing([{NODE.name: probe()}], (NODE,)))
    monkeypatch.setattr(runs.time, "sleep", wait)
    said = io.StringIO()
    request = dataclasses.replace(request, lock_wait_s=60.0)
    ended = runs.run(request, Console(file=said), connect=lambda _: Changing([{NODE.name: probe()}], (NODE,)))
    assert ended.ending.exit_code is ExitCode.PASSED
    assert len(waits) == 3
    assert said.getvalue().count("waiting up to 60 s") == 1


# --- sessions ---------------------------------------------------------------------------------------------------------------------


def test_every_driver_leaves_a_session_with_what_it_expected(tmp_path):
    drive(request(tmp_path), Toys())
    drive(request(tmp_path, resume=True), Toys())

    first, second = Store(str(tmp_path / "out")).resolve("r").record.sessions
    assert (first.nodes, first.devices, first.gpu, first.tasks, first.complete) == (1, 1, None, 2, True)
    assert first.forecast_s > 0
    assert first.ended >= first.started
    assert (second.tasks, second.forecast_s, second.complete) == (0, None, True)


def test_a_run_that_is_given_too_little_time_starts_nothing_and_says_how_to_go_on(tmp_path):
    ended = drive(request(tmp_path, stop_after_s=0.001), Toys())

    assert (ended.ending.exit_code, ended.ending.reason) == (ExitCode.INTERRUPTED, "its time is up")
    assert "--stop-after 0.001" in ended.go_on
    assert drive(request(tmp_path, resume=True, stop_after_s=600.0), Toys()).ending.exit_code is ExitCode.PASSED


def test_the_nodes_that_get_tasks_load_what_the_models_need(tmp_path):
    head = dataclasses.replace(NODE, name="head", num_cpus=0.0)
    cluster = FakeCluster()
    specs = [dataclasses.replace(task("m"), model=ModelSpec("timm", "m"))]
    runs._warm_up(cluster, [head, NODE], specs, "cuda", Console(file=io.StringIO()))
    assert cluster.warmed == ((NODE.name,), modules_of(["timm"]), "cuda")
    cluster.warmed = None
    runs._warm_up(cluster, [NODE], [task("toy")], "cpu", Console(file=io.StringIO()))
    assert cluster.warmed is None


def test_a_node_that_cannot_warm_up_starts_cold(tmp_path):
    class Cold(FakeCluster):
        def warm_up(self, nodes, modules, device):
            return {NODE.name: "the disk"}

    console = Console(file=io.StringIO(), width=200)
    runs._warm_up(Cold(), [NODE], [dataclasses.replace(task("m"), model=ModelSpec("timm", "m"))], "cpu", console)
    assert f"node {NODE.name} starts cold: the disk" in console.file.getvalue()


def test_a_head_that_takes_no_tasks_does_not_count_for_sharing(tmp_path):
    (tmp_path / "toys.yaml").write_text(TOYS.replace("num_cpus: 1", "sharing: auto, labels: {pool: nightly}"))
    loaded = load_manifest(tmp_path / "toys.yaml")
    head = dataclasses.replace(NODE, name="head", num_cpus=0.0, labels={"pool": "nightly"})
    small = dataclasses.replace(NODE, name="small", num_cpus=1.0)
    large = dataclasses.replace(NODE, name="large", num_cpus=8.0, labels={"pool": "nightly"})
    assert runs._sharing(loaded, "cpu", [head, small, large], {}).cores == 8.0


def test_tasks_are_launched_side_by_side_and_what_is_done_does_not_count():
    entries = [
        CostedTask(task(name, resources=ResourceSpec("cuda", 1.0, share)), Reason.NEW, None, Cost(cost_s))
        for name, cost_s, share in [("done", 200.0, 0.9), ("large", 100.0, 0.7), ("larger", 90.0, 0.8), ("small", 10.0, 0.01)]
    ]
    site = Site("cuda", (NODE,), "H100", Sharing(2, 2.0, 80_000, cores_decide=True), None)
    begun = SimpleNamespace(begin_session=lambda session: None)
    tasks = [SweepTask(entry.spec.task_id, done=Status.PASS if index == 0 else None) for index, entry in enumerate(entries)]

    ordered = runs._begin_session(begun, entries, site, Console(file=io.StringIO()), tasks)

    assert [one.task_id for one in ordered] == [entries[index].spec.task_id for index in (1, 3, 2, 0)]
