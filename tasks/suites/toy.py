"""The toy suite: models that finish at once with planted durations, and models that go wrong in every way a worker can.

Tests, chaos runs and scheduling benchmarks use it, and so can anyone who wants to see what a sweep does about a failure. A toy goes
through the phases of a real task; ``options`` of the manifest set what it does. Anything after a dot in a name is a label, so that a
manifest can have many of a kind: ``pass.17``. No torch; standard library only until a toy passes, which takes the estimator.
"""

from __future__ import annotations

import ctypes
import math
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import NoReturn

from tasks.channel import Channel, Use
from tasks.spec import (
    AA_PHASES,
    Accuracy,
    Arm,
    Blocks,
    FailureClass,
    Measurement,
    Phase,
    Quality,
    Samples,
    Scalar,
    Status,
    TaskSpec,
    WorkerResult,
)

PLANTED: dict[str, Scalar] = {"eager_ms": 2.0, "compiled_ms": 1.0, "noise": 0.002, "pairs": 12, "process_noise": 0.0}
"""Options of every toy that passes: milliseconds per iteration, the standard deviation of their logarithm, how many pairs, and by how much
ln(speedup) varies from one process of a task to the next."""

_FOREVER_S = 3600


@dataclass(frozen=True, slots=True)
class Act:
    """One toy at work. ``options`` are complete: the given ones over the defaults."""

    task: TaskSpec
    options: Mapping[str, Scalar]
    channel: Channel
    out_path: Path
    process: int = 0

    def number(self, name: str) -> float:
        """The value of an option; 0 for one that this toy does not have."""
        return float(self.options.get(name) or 0)

    def up_to(self, last: Phase) -> None:
        """Go through the phases of a task, ``last`` included."""
        for phase in Phase:
            if phase is not Phase.START:
                self.channel.phase(phase)
            if phase is last:
                return


@dataclass(frozen=True, slots=True)
class Toy:
    """One kind of toy. Only those that finish ``at_once`` may run in the process of their supervisor."""

    description: str
    play: Callable[[Act], WorkerResult]
    options: dict[str, Scalar] = field(default_factory=dict)
    at_once: bool = False


def run(task: TaskSpec, channel: Channel, out_path: Path, process: int = 0) -> WorkerResult:
    """Play the toy that ``task`` names, in the task's ``process``-th process.

    An unknown toy or option is a failed build, as for any other model.
    """
    toy = MODELS.get(kind_of(task.model.name))
    problem = f"there is no toy {task.model.name!r}" if toy is None else _problem(toy, task.model.options)
    if toy is None or problem is not None:
        channel.phase(Phase.BUILD)
        return WorkerResult(Status.FAIL_EAGER, Phase.BUILD, FailureClass.MODEL, problem)
    return toy.play(Act(task, toy.options | task.model.options, channel, out_path, process))


def kind_of(name: str) -> str:
    """The key in ``MODELS`` of a model's name."""
    return name.partition(".")[0]


def finishes_at_once(name: str) -> bool:
    toy = MODELS.get(kind_of(name))
    return toy is not None and toy.at_once


def _problem(toy: Toy, given: Mapping[str, Scalar]) -> str | None:
    for name, value in given.items():
        if name not in toy.options:
            return f"unknown option {name!r}; this toy has {', '.join(sorted(toy.options)) or 'none'}"
        problem = value_problem(toy, name, value)
        if problem is not None:
            return problem
    return None


def value_problem(toy: Toy, name: str, value: Scalar) -> str | None:
    """What is wrong with the value of one of the toy's options, or None."""
    wanted = str if isinstance(toy.options[name], str) else (int, float)
    if not isinstance(value, wanted) or isinstance(value, bool):
        return f"option {name!r} must be {'text' if wanted is str else 'a number'}, not {value!r}"
    if name == "phase" and value not in set(Phase):
        return f"option 'phase' must be one of {', '.join(Phase)}, not {value!r}"
    return None


# --- toys that pass -------------------------------------------------------------------------------------------------------------------


def _pass(act: Act) -> WorkerResult:
    began = act.channel.running_s()
    for _ in range(int(act.number("orphans"))):
        _abandon(dict(os.environ))
    act.up_to(Phase.COMPILE)
    _compile(act)
    compile_s = act.channel.running_s() - began
    act.channel.phase(Phase.VERIFY)
    act.channel.phase(Phase.TIME)
    for _ in range(max(1, int(act.number("rounds")))):
        _warm_and_time(act)
    samples = planted_samples(act)
    act.channel.phase(Phase.WRITE)
    measured = _measurement(act, samples, compile_s)
    return WorkerResult(Status.PASS, Phase.WRITE, measurement=measured, samples=samples, blocks=_blocks(samples))


def _compile(act: Act) -> None:
    """Tune, then take ``seconds``, all off the device; with ``tick_ms``, say every so often when this process ran."""
    with act.channel.off_device():
        for _ in range(int(act.number("tunings"))):
            _own(act, Use.TUNE)
        seconds, tick_s = act.number("seconds"), act.number("tick_ms") / 1000
        if not tick_s:
            time.sleep(seconds)
            return
        for _ in range(round(seconds / tick_s)):
            time.sleep(tick_s)
            print(f"tick {time.monotonic()!r}", flush=True)  # noqa: T201 - a worker's output is its log


def _warm_and_time(act: Act) -> None:
    warm_s = act.number("warm_seconds")
    with act.channel.exclusive(Use.WARM if warm_s else Use.TIME):
        began = time.monotonic()
        time.sleep(warm_s)
        if warm_s:
            print(f"{Use.WARM.value} {began!r} {time.monotonic()!r}", flush=True)  # noqa: T201 - a worker's output is its log
        _own(act, Use.TIME)
        time.sleep(warm_s)


def _own(act: Act, use: Use) -> None:
    with act.channel.exclusive(use):
        began = time.monotonic()
        if seconds := act.number("exclusive_seconds"):
            time.sleep(seconds)
            line = f"{use.value} {began!r} {time.monotonic()!r}"
            print(line, flush=True)  # noqa: T201 - a worker's output is its log
            if act.options.get("exclusive_log"):
                with Path(str(act.options["exclusive_log"])).open("a") as file:
                    file.write(line + "\n")


def planted_samples(act: Act) -> Samples:
    """Samples with the planted medians and noise, the same for the same seed, task and process; no time passes."""
    from tasks.estimator import joined

    source = random.Random("/".join([str(act.task.seed), act.task.task_id, *([str(act.process)] if act.process else [])]))
    times_ms = {arm: act.number(f"{arm.value}_ms") for arm in Arm}
    if act.task.aa:
        return joined([_planted(act, source, phase, dict.fromkeys(Arm, times_ms[arm])) for arm, phase in AA_PHASES.items()])
    samples = _planted(act, source, "timed", times_ms)
    if not act.number("process_noise"):
        return samples
    shift = math.exp(source.gauss(0.0, act.number("process_noise")))
    shifted = (round(host_ns * shift) if arm == Arm.EAGER else host_ns for arm, host_ns in zip(samples.arm, samples.host_ns, strict=True))
    return replace(samples, host_ns=tuple(shifted))


def _planted(act: Act, source: random.Random, phase: str, times_ms: Mapping[Arm, float]) -> Samples:
    iterations = act.task.measure.block_iterations
    rows: list[tuple[Arm, int, int, int, int, int]] = []
    clock_ns = 0
    for pair in range(int(act.number("pairs"))):
        arms = source.sample(list(Arm), 2)
        for order, arm in enumerate(arms):
            for iteration in range(iterations):
                host_ns = round(times_ms[arm] * 1e6 * math.exp(source.gauss(0.0, act.number("noise"))))
                rows.append((arm, pair, order, iteration, host_ns, clock_ns))
                clock_ns += host_ns
    count = len(rows)
    return Samples(
        phase=(phase,) * count,
        arm=tuple(arm.value for arm, *_ in rows),
        process=(0,) * count,
        pair=tuple(row[1] for row in rows),
        block=tuple(2 * row[1] + row[2] for row in rows),
        order=tuple(row[2] for row in rows),
        iteration=tuple(row[3] for row in rows),
        washout=(False,) * count,
        host_ns=tuple(row[4] for row in rows),
        device_ms=(None,) * count,
        started_ns=tuple(row[5] for row in rows),
        valid=(True,) * count,
        reason=(None,) * count,
    )


def _blocks(samples: Samples) -> Blocks:
    """One row for each block of ``samples``; of the machine nothing is known."""
    ends = [row for row, iteration in enumerate(samples.iteration) if row + 1 == len(samples.iteration) or not samples.iteration[row + 1]]
    shared = {field.name for field in fields(Samples)} & {field.name for field in fields(Blocks)}
    columns = {name: tuple(getattr(samples, name)[row] for row in ends) for name in shared}
    ended = tuple(samples.started_ns[row] + samples.host_ns[row] for row in ends)
    unknown = {field.name: (None,) * len(ends) for field in fields(Blocks)}
    return Blocks(**unknown | columns | {"ended": ended})


def _measurement(act: Act, samples: Samples, compile_s: float) -> Measurement:
    from tasks.estimator import Summary, summarise

    summary = summarise(samples)
    names = {field.name for field in fields(Measurement)} & {field.name for field in fields(Summary)}
    narrow = summary.half_width is not None and summary.half_width <= act.task.measure.half_width
    return Measurement(
        **{name: getattr(summary, name) for name in names},
        quality=(Quality.OK if narrow else Quality.WIDE).value,
        compile_s=compile_s,
        graphs=1,
        graph_breaks=0,
        recompiles=0,
        fell_back=False,
        accuracy=Accuracy.PASS.value,
        batch_size=act.task.model.batch_size,
        model_source="toy",
    )


def _garbage(act: Act) -> WorkerResult:
    os.write(sys.stdout.fileno(), b"\x1b[2J\x1b]0;title\x07\x00\xff\xfe" + random.Random(act.task.seed).randbytes(4096) + b"\n")
    return _pass(act)


def _flood(act: Act) -> WorkerResult:
    for number in range(int(act.number("mib"))):
        _write_all(f"{number:07d} ".encode() + b"." * (2**20 - 9) + b"\n")
    return _pass(act)


def _write_all(data: bytes) -> None:
    while data:
        data = data[os.write(sys.stdout.fileno(), data) :]


def _litter(act: Act) -> WorkerResult:
    """Fills its temporary directory, and the disk below it if that is smaller; what it leaves there is its supervisor's to remove."""
    act.up_to(Phase.COMPILE)
    # By name: where that directory is full already, ``tempfile`` would quietly choose another one, on another disk.
    with tempfile.NamedTemporaryFile(delete=False, dir=os.environ.get("TMPDIR")) as file:
        for _ in range(int(act.number("mib"))):
            file.write(b"." * 2**20)
            file.flush()
    return _pass(act)


def _orphans(act: Act) -> WorkerResult:
    """Children that leave the session and whose parent dies: the first without any environment."""
    for number in range(int(act.number("count"))):
        _abandon({} if number == 0 else dict(os.environ))
    return _pass(act)


def _abandon(environment: dict[str, str]) -> None:
    child = os.fork()
    if child == 0:
        os.setsid()
        if os.fork() != 0:
            os._exit(0)
        os.write(sys.stdout.fileno(), f"orphan {os.getpid()}\n".encode())
        os.execve(  # noqa: S606 - no shell is wanted
            sys.executable, [sys.executable, "-ISc", f"import time; time.sleep({_FOREVER_S})"], environment
        )
    os.waitpid(child, 0)


# --- toys that fail in an orderly way -------------------------------------------------------------------------------------------------


def _failing(status: Status, phase: Phase, failure_class: FailureClass, error: str) -> Callable[[Act], WorkerResult]:
    def play(act: Act) -> WorkerResult:
        act.up_to(phase)
        measurement = Measurement(accuracy=Accuracy.FAIL.value, accuracy_reason=error) if status is Status.FAIL_ACCURACY else Measurement()
        return WorkerResult(status, phase, failure_class, error, measurement)

    return play


def _oom(act: Act) -> WorkerResult:
    """With ``from_neighbours`` it lacks memory only beside so many others, after ``seconds`` in which they may arrive, else passes."""
    act.up_to(Phase.EAGER)
    time.sleep(act.number("seconds"))
    with act.channel.exclusive() as grant:
        if grant.neighbours >= act.number("from_neighbours"):
            error = "OutOfMemoryError: planted: device memory is not enough"
            return WorkerResult(Status.OOM, Phase.EAGER, FailureClass.DEVICE_OOM, error)
    return _pass(act)


def _host_oom(act: Act) -> WorkerResult:
    """Asks for more memory than its process may have, without endangering the machine."""
    act.up_to(Phase.EAGER)
    resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
    try:
        bytearray(2**40)
    except MemoryError:
        return WorkerResult(Status.OOM, Phase.EAGER, FailureClass.HOST_OOM, "MemoryError: the machine's memory is not enough")
    raise AssertionError("the limit on memory does not hold")


# --- toys that take their process with them -------------------------------------------------------------------------------------------


def _relapse(act: Act) -> WorkerResult:
    return _pass(act) if act.process == 0 else _crash(act)


def _crash(act: Act) -> NoReturn:
    act.up_to(_phase_of(act))
    ctypes.string_at(0)
    raise AssertionError("reading address 0 did not crash")


def _exit_zero(act: Act) -> NoReturn:
    act.up_to(_phase_of(act))
    os._exit(0)


def _half_result(act: Act) -> NoReturn:
    act.up_to(Phase.WRITE)
    act.out_path.write_text('{"status": "pass", "phase": "wri', encoding="utf-8")
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL did not end this process")


def _hang(act: Act) -> NoReturn:
    """In C and with the interpreter's lock held, as a deadlocked extension would."""
    for _ in range(int(act.number("orphans"))):
        _abandon(dict(os.environ))
    act.up_to(_phase_of(act))
    libc = ctypes.PyDLL(None)
    while True:
        libc.sleep(_FOREVER_S)


def _ignore_sigterm(act: Act) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _hang(act)


def _phase_of(act: Act) -> Phase:
    return Phase(str(act.options["phase"]))


_LONGER: dict[str, Scalar] = {
    **PLANTED,
    "seconds": 1.0,
    "tick_ms": 0,
    "orphans": 0,
    "exclusive_seconds": 0.0,
    "rounds": 1,
    "warm_seconds": 0.0,
    "tunings": 0,
    "exclusive_log": "",
}
_IN_COMPILE: dict[str, Scalar] = {"phase": Phase.COMPILE.value}

MODELS: dict[str, Toy] = {
    "pass": Toy("passes at once", _pass, PLANTED, at_once=True),
    "slow_pass": Toy("compiles for some seconds, times for some more while it owns the device, then passes", _pass, _LONGER),
    "noisy": Toy("passes with a wide interval", _pass, {**PLANTED, "noise": 0.3}, at_once=True),
    "garbage": Toy("prints binary junk, then passes", _garbage, PLANTED),
    "flood": Toy("prints many MiB, then passes", _flood, {**PLANTED, "mib": 64}),
    "litter": Toy("leaves many MiB in its temporary directory, then passes", _litter, {**PLANTED, "mib": 64}),
    "orphans": Toy("leaves children behind in sessions of their own, then passes", _orphans, {**PLANTED, "count": 3}),
    "fail_eager": Toy(
        "fails in eager mode",
        _failing(Status.FAIL_EAGER, Phase.EAGER, FailureClass.MODEL, "RuntimeError: planted failure of the eager step"),
        at_once=True,
    ),
    "fail_compile": Toy(
        "fails to compile",
        _failing(Status.FAIL_COMPILE, Phase.COMPILE, FailureClass.COMPILER, "RuntimeError: planted failure of the compiler"),
        at_once=True,
    ),
    "fail_accuracy": Toy(
        "compiles to something that computes another result",
        _failing(Status.FAIL_ACCURACY, Phase.VERIFY, FailureClass.ACCURACY, "planted: the compiled step computes another result"),
        at_once=True,
    ),
    "fail_run": Toy(
        "fails while it is timed",
        _failing(Status.FAIL_RUN, Phase.TIME, FailureClass.COMPILER, "RuntimeError: planted failure of the compiled step"),
        at_once=True,
    ),
    "oom": Toy("runs out of device memory", _oom, {**PLANTED, "seconds": 0.0, "from_neighbours": 0}, at_once=True),
    "unsupported": Toy(
        "needs what this machine lacks",
        _failing(Status.UNSUPPORTED, Phase.BUILD, FailureClass.UNSUPPORTED, "planted: this machine cannot run the model"),
        at_once=True,
    ),
    "host_oom": Toy("runs out of the machine's memory", _host_oom),
    "crash": Toy("ends with a segmentation fault", _crash, _IN_COMPILE),
    "relapse": Toy("passes in its first process and crashes in any later one", _relapse, PLANTED | _IN_COMPILE),
    "exit_zero": Toy("exits with status 0 and no result", _exit_zero, _IN_COMPILE),
    "half_result": Toy("is killed half way through writing its result", _half_result),
    "hang": Toy("never ends", _hang, _IN_COMPILE | {"orphans": 0}),
    "ignore_sigterm": Toy("never ends, and SIGTERM does not end it", _ignore_sigterm, _IN_COMPILE | {"orphans": 0}),
}
