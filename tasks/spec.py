"""The wire vocabulary between orchestrator and worker: what to measure, and what came of it.

Standard library only and free of behaviour, so every part of the project may import it. ``encode`` and ``decode`` turn any of
these dataclasses into JSON-able data and back; ``decode`` raises ``SpecError`` for data that does not fit.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar

Scalar = str | int | float | bool | None
T = TypeVar("T")


class SpecError(ValueError):
    """Data that does not describe the dataclass it was decoded as."""


class Status(StrEnum):
    """How a task ended. The set is closed: every planned task ends in exactly one of these."""

    PASS = "pass"  # noqa: S105 - a status, not a password
    FAIL_ACCURACY = "fail_accuracy"
    FAIL_EAGER = "fail_eager"
    FAIL_COMPILE = "fail_compile"
    FAIL_RUN = "fail_run"
    OOM = "oom"
    TIMEOUT = "timeout"
    CRASH = "crash"
    UNSUPPORTED = "unsupported"
    SKIPPED = "skipped"
    INFRA_ERROR = "infra_error"


class Phase(StrEnum):
    """Where a worker is, in the order in which it gets there; each has a deadline of its own."""

    START = "start"
    BUILD = "build"
    EAGER = "eager"
    COMPILE = "compile"
    VERIFY = "verify"
    TIME = "time"
    WRITE = "write"


class FailureClass(StrEnum):
    """Why a task did not pass: the key of the retry policy."""

    MODEL = "model"  # the model itself fails, in eager mode
    COMPILER = "compiler"  # eager works, compiling or running the compiled step does not
    ACCURACY = "accuracy"
    DEVICE_OOM = "device_oom"
    HOST_OOM = "host_oom"
    DISK_FULL = "disk_full"  # the node had no room left, and not by the task's own doing
    DEADLINE = "deadline"  # a phase or the task ran out of time
    CRASH = "crash"  # the worker died without a result
    UNSUPPORTED = "unsupported"  # this machine or these library versions cannot run it
    EXCLUDED = "excluded"  # the manifest says why
    DEVICE = "device"  # the device is dirty, lost or not the one that was assigned
    WORKER_LOST = "worker_lost"  # the process that supervised the task died
    NODE_LOST = "node_lost"
    UNSCHEDULED = "unscheduled"  # never started within its start deadline
    INTERNAL = "internal"  # a mistake in this project's own code on the node


class Quality(StrEnum):
    """How far a speedup can be trusted; section 2.9 of the measurement protocol in docs/method.md."""

    OK = "ok"
    WIDE = "wide"
    NOISY = "noisy"
    CONTAMINATED = "contaminated"
    DRIFT = "drift"
    WARMUP_UNCONVERGED = "warmup_unconverged"
    RECOMPILED = "recompiled"


class Accuracy(StrEnum):
    """The verdict on the compiled step against the eager one."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    FAIL = "fail"
    SKIPPED = "skipped"


class Arm(StrEnum):
    """The two sides of a measurement."""

    EAGER = "eager"
    COMPILED = "compiled"


AA_PHASES: Mapping[Arm, str] = {Arm.EAGER: "aa_eager", Arm.COMPILED: "aa_compiled"}
"""The phases of samples in which an arm is measured against itself; their arms are the two sides of one and the same callable."""


def beside(phase: str, clock: str) -> str:
    """The phase of samples on a ``clock`` of the device, "device" or "event", that are taken after those of ``phase``."""
    return clock if phase == "timed" else f"{phase}_{clock}"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Which model, at which size. ``options`` go to the suite's builder (``seq_len``, ``image_size`` and the like)."""

    suite: str
    name: str
    batch_size: int | None = None  # None: the suite's own default for the model
    factory: str | None = None  # "package.module:function", for models outside the suites
    options: dict[str, Scalar] = field(default_factory=dict)
    source: str | None = None  # torchbench: "checkout" takes the model from a TorchBench checkout


@dataclass(frozen=True, slots=True)
class CompileSpec:
    """The arguments of ``torch.compile``, and whether a failed compile may fall back to eager."""

    backend: str = "inductor"
    mode: str | None = None
    dynamic: bool | None = False
    fullgraph: bool = False
    options: dict[str, Scalar] = field(default_factory=dict)
    suppress_errors: bool = False


@dataclass(frozen=True, slots=True)
class PrecisionSpec:
    """``float32`` with or without TF32, or ``amp``: autocast to ``autocast_dtype`` (None: float16 on CUDA, bfloat16 on CPU)."""

    dtype: str
    tf32: bool = True
    autocast_dtype: str | None = None


@dataclass(frozen=True, slots=True)
class MeasureSpec:
    """Warm-up, pairs and the stopping rule of ``tasks.measure``."""

    half_width: float = 0.01  # stop when the interval of ln(speedup) is at most this wide to either side
    min_pairs: int = 8
    max_pairs: int = 60
    max_time_s: float = 60.0
    block_iterations: int = 5
    warmup_max_s: float = 30.0
    processes: int = 1


@dataclass(frozen=True, slots=True)
class AccuracySpec:
    """Tolerances of ``tasks.accuracy``; None: the default for the suite, mode and dtype."""

    iterations: int = 2
    tolerance: float | None = None
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class DeadlineSpec:
    """Seconds after which a phase, or the task as a whole, is killed."""

    start_s: float = 180.0
    build_s: float = 300.0
    eager_s: float = 300.0
    compile_s: float = 1200.0
    verify_s: float = 600.0
    time_s: float = 600.0
    write_s: float = 60.0
    task_s: float = 2400.0

    def of(self, phase: Phase) -> float:
        """Seconds allowed in ``phase``."""
        return float(getattr(self, f"{phase.value}_s"))


@dataclass(frozen=True, slots=True)
class ResourceSpec:
    """What a task asks of the cluster. ``device`` is ``cuda`` or ``cpu``; ``threads`` None means as many as ``num_cpus``."""

    device: str = "cpu"
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    accelerator: str | None = None
    memory_mib: int | None = None
    threads: int | None = None
    compile_threads: int | None = None
    isolation: str = "process"  # "inline": in the supervisor's own process, for toys that finish at once
    labels: tuple[tuple[str, str], ...] = ()  # Ray's labels that the node must have
    peak_mib: float | None = None  # of device memory, as expected; not known, or of no interest, where None
    compile_helpers: int = 0  # compile processes beyond ``compile_threads``, for a task that would outlast the others

    @property
    def compile_processes(self) -> int:
        """Inductor's compile processes, altogether."""
        return (self.compile_threads or max(1, int(self.num_cpus))) + self.compile_helpers


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One benchmark, complete: a worker needs nothing else to run it."""

    task_id: str
    model: ModelSpec
    mode: str  # "training" or "inference"
    backend: str  # the manifest's name for ``compile``
    precision: PrecisionSpec
    compile: CompileSpec = field(default_factory=CompileSpec)
    measure: MeasureSpec = field(default_factory=MeasureSpec)
    accuracy: AccuracySpec = field(default_factory=AccuracySpec)
    deadlines: DeadlineSpec = field(default_factory=DeadlineSpec)
    resources: ResourceSpec = field(default_factory=ResourceSpec)
    optimizer: str = "none"  # "none", "sgd" or "adam"
    cache: str = "cold"  # "cold": empty for each process; "shared": one per node and run; "bundle": filled from what an earlier run kept
    seed: int = 1337
    aa: bool = False  # measure each arm against itself, to see what the method makes of no difference
    digest: str = ""
    manifest_digest: str = ""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a task. ``spool`` is a directory where a finished outcome is left for a driver that has died meanwhile.

    ``bundles`` is one where compile caches are kept from run to run. ``refuse``: GPUs, by ``device_name``, that are quarantined.
    """

    run_id: str
    number: int
    spool: str | None = None
    bundles: str | None = None
    refuse: tuple[str, ...] = ()
    gpu_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a worker found out; None is "not reached" or "not known here". Times in ms, memory in MiB, as named."""

    speedup: float | None = None
    speedup_low: float | None = None  # 95 % interval
    speedup_high: float | None = None
    speedup_of_medians: float | None = None  # median(eager) / median(compiled), upstream's statistic
    process_speedups: tuple[float, ...] = ()  # each process's own estimate, in the order in which they ran
    aa_eager: float | None = None  # A/A: eager against eager, with its 95 % interval; speedup is then None
    aa_eager_low: float | None = None
    aa_eager_high: float | None = None
    aa_compiled: float | None = None  # compiled against compiled
    aa_compiled_low: float | None = None
    aa_compiled_high: float | None = None
    quality: str | None = None  # Quality
    pairs: int | None = None
    eager_ms: float | None = None
    compiled_ms: float | None = None
    eager_device_ms: float | None = None  # time the device was busy with one iteration
    compiled_device_ms: float | None = None
    eager_event_ms: float | None = None  # from the first to the last of it on the device, which may have waited for its host between
    compiled_event_ms: float | None = None
    empty_step_us: float | None = None  # what clock and synchronisation around an iteration take
    launch_bound: bool | None = None
    compile_s: float | None = None  # wall seconds of the first compiled step less a steady one
    compile_cpu_s: float | None = None
    neighbours: int | None = None  # other workers on the device while this one compiled
    eager_peak_mib: float | None = None
    compiled_peak_mib: float | None = None
    peak_mib: float | None = None  # of the whole process, with saved states, copies and the accuracy reference
    graphs: int | None = None
    graph_breaks: int | None = None
    graph_break_reasons: tuple[str, ...] = ()
    recompiles: int | None = None
    fell_back: bool | None = None  # suppress_errors let a frame run in eager mode
    cache_hits: int | None = None  # graphs that came from a compile cache
    cache_misses: int | None = None
    accuracy: str | None = None  # Accuracy
    accuracy_reason: str | None = None
    accuracy_tensor: str | None = None  # the worst tensor, by name
    accuracy_margin: float | None = None  # >= 0 passes; how far the worst tensor is from its limit, relative to it
    accuracy_tolerance: float | None = None
    eager_rmse: float | None = None
    compiled_rmse: float | None = None
    deterministic: bool | None = None
    reference: str | None = None  # what the verdict was made against, "float64" or why not
    random_numbers: str | None = None  # what those that the model draws do to its results: "none", "negligible" or "decisive"
    batch_size: int | None = None
    parameters: int | None = None
    input_shapes: str | None = None
    model_source: str | None = None  # library, rebuilt, checkout, toy, factory
    fidelity: str | None = None  # a remark on how the model differs from the historical one
    device: str | None = None
    gpu_uuid: str | None = None
    autocast_dtype: str | None = None
    threads: int | None = None
    compile_threads: int | None = None
    versions: dict[str, str | None] = field(default_factory=dict)  # python, torch, triton, transformers, timm, torchvision, driver, ...
    machine: dict[str, Scalar] = field(default_factory=dict)  # CPU model, cores, memory, GPU limits, ...


@dataclass(frozen=True, slots=True)
class Samples:
    """Every iteration a worker timed, as columns of one length."""

    phase: tuple[str, ...] = ()  # warmup, timed and those of AA_PHASES, with what ``beside`` names for each
    arm: tuple[str, ...] = ()  # Arm
    process: tuple[int, ...] = ()
    pair: tuple[int, ...] = ()  # -1 outside pairs
    block: tuple[int, ...] = ()
    order: tuple[int, ...] = ()  # 0: the block that came first in its pair
    iteration: tuple[int, ...] = ()
    washout: tuple[bool, ...] = ()
    host_ns: tuple[int, ...] = ()
    device_ms: tuple[float | None, ...] = ()  # on the device's clock, of samples taken by it
    started_ns: tuple[int, ...] = ()  # monotonic clock of the worker
    valid: tuple[bool, ...] = ()
    reason: tuple[str | None, ...] = ()  # why a sample is not valid


@dataclass(frozen=True, slots=True)
class Blocks:
    """The state of the machine at the end of every block that was timed, as columns of one length; None is "not known here".

    Clocks, temperature and power are those of the moment; what ends in ``_s``, ``_ns`` or ``_mj`` was counted since the border before.
    """

    phase: tuple[str, ...] = ()  # as that of the block's samples
    process: tuple[int, ...] = ()
    pair: tuple[int, ...] = ()
    block: tuple[int, ...] = ()
    arm: tuple[str, ...] = ()  # Arm
    order: tuple[int, ...] = ()
    valid: tuple[bool, ...] = ()
    reason: tuple[str | None, ...] = ()  # why its pair is not valid
    ended: tuple[int, ...] = ()  # monotonic clock of the worker, in ns
    sm_clock_mhz: tuple[float | None, ...] = ()
    memory_clock_mhz: tuple[float | None, ...] = ()
    temperature_c: tuple[float | None, ...] = ()
    power_w: tuple[float | None, ...] = ()
    energy_mj: tuple[int | None, ...] = ()
    power_cap_ns: tuple[int | None, ...] = ()  # the power limit held the clock down
    slowdown_ns: tuple[int | None, ...] = ()  # for heat, or by the power brake
    clock_reasons: tuple[str | None, ...] = ()  # what holds the clock down at this moment, by NVML's names
    other_processes: tuple[str | None, ...] = ()  # that used the GPU since the pair began, by number
    cpu_pressure_s: tuple[float | None, ...] = ()
    cpu_steal_s: tuple[float | None, ...] = ()
    cpu_wait_s: tuple[float | None, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerResult:
    """The file a worker leaves by atomic rename."""

    status: Status
    phase: Phase
    failure_class: FailureClass | None = None
    error: str | None = None
    measurement: Measurement = field(default_factory=Measurement)
    samples: Samples = field(default_factory=Samples)
    blocks: Blocks = field(default_factory=Blocks)

    @property
    def measured(self) -> bool:
        """Went all the way to a measurement; one of several processes that did not makes the task fail."""
        return self.status in (Status.PASS, Status.FAIL_ACCURACY)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one attempt ended, as the supervisor or the driver saw it. Times are seconds since the epoch, UTC."""

    task_id: str
    attempt: int
    status: Status
    phase: Phase
    failure_class: FailureClass | None = None
    error: str | None = None
    log_tail: str = ""
    log: str = ""  # the whole log, capped; goes to a file and not into the row
    phase_s: dict[str, float] = field(default_factory=dict)
    paused_s: float = 0.0  # stopped so that a neighbour could time; not in phase_s
    waited_s: float = 0.0  # waiting to own the device; not in phase_s
    owned_s: float = 0.0  # the device was its own; in phase_s
    tuned_s: float = 0.0  # those of them for which it compared candidates of kernels, beside neighbours that compiled
    warmed_s: float = 0.0  # those of them for which it warmed up, likewise
    started: float = 0.0
    ended: float = 0.0
    node: str = ""
    environment: dict[str, str] = field(default_factory=dict)  # the variables set for the worker
    measurement: Measurement = field(default_factory=Measurement)
    samples: Samples = field(default_factory=Samples)
    blocks: Blocks = field(default_factory=Blocks)


def device_name(node: str, gpu: str) -> str:
    """What a run calls one GPU of a node."""
    return f"{node}/{gpu}"


def slug(identifier: str) -> str:
    """A file name for ``identifier``: readable, at most 91 ASCII characters, and different for every identifier."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", identifier).strip(".-")[:80]
    return f"{readable}-{hashlib.sha256(identifier.encode()).hexdigest()[:10]}"


def encode(value: Any) -> Any:
    """A dataclass of this module as JSON-able data."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [encode(item) for item in value]
    return value.value if isinstance(value, StrEnum) else value


def decode(kind: type[T], data: Any) -> T:
    """Rebuild ``kind`` from what ``encode`` made.

    Raises:
        SpecError: a field is unknown, lacks, or holds a value of another type; the message names its path.
    """
    value: T = _decoder(typing.cast("Any", kind))(data, kind.__name__)
    return value


_Decoder = Callable[[Any, str], Any]


@cache
def _decoder(kind: Any) -> _Decoder:
    """The function that rebuilds ``kind``, made once per type: a sweep decodes the same few types many thousand times."""
    if dataclasses.is_dataclass(kind):
        return _dataclass_decoder(typing.cast("type", kind))
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _union_decoder(kind, arguments)
    if origin is tuple:
        return _tuple_decoder(kind, arguments[0])
    if origin is dict:
        return _dict_decoder(kind, arguments[1])
    return _scalar_decoder(kind)


def _scalar_decoder(kind: Any) -> _Decoder:
    if issubclass(kind, StrEnum):
        members = {member.value: member for member in kind}

        def decode_member(data: Any, where: str) -> Any:
            _expect(isinstance(data, str) and data in members, where, kind, data)
            return members[data]

        return decode_member

    def decode_scalar(data: Any, where: str) -> Any:
        if type(data) is kind:
            return data
        _expect(kind is float and type(data) is int, where, kind, data)
        return float(data)

    return decode_scalar


def _tuple_decoder(kind: Any, item: Any) -> _Decoder:
    decode_item = _decoder(item)
    # A column of thousands of numbers is checked by the set of its types, not number by number. An int among floats takes the long way.
    plain = frozenset(typing.get_args(item) or (item,)) & {str, int, float, bool, type(None)}

    def decode_tuple(data: Any, where: str) -> Any:
        _expect(isinstance(data, (list, tuple)), where, kind, data)
        if plain.issuperset(map(type, data)):
            return tuple(data)
        return tuple([decode_item(entry, where) for entry in data])

    return decode_tuple


def _dict_decoder(kind: Any, item: Any) -> _Decoder:
    decode_item = _decoder(item)

    def decode_dict(data: Any, where: str) -> Any:
        _expect(isinstance(data, Mapping), where, kind, data)
        return {str(key): decode_item(entry, f"{where}.{key}") for key, entry in data.items()}

    return decode_dict


def _dataclass_decoder(kind: type) -> _Decoder:
    decoders = {name: _decoder(hint) for name, hint in typing.get_type_hints(kind).items()}

    def decode_dataclass(data: Any, where: str) -> Any:
        _expect(isinstance(data, Mapping), where, kind, data)
        unknown = sorted(set(data) - set(decoders))
        if unknown:
            raise SpecError(f"{where}: unknown field {unknown[0]!r}")
        try:
            return kind(**{name: decoders[name](value, f"{where}.{name}") for name, value in data.items()})
        except TypeError as error:
            raise SpecError(f"{where}: {error}") from error

    return decode_dataclass


def _union_decoder(kind: Any, members: tuple[Any, ...]) -> _Decoder:
    optional = type(None) in members
    decoders = [_decoder(member) for member in members if member is not type(None)]

    def decode_union(data: Any, where: str) -> Any:
        if data is None and optional:
            return None
        for decoder in decoders:
            try:
                return decoder(data, where)
            except SpecError:
                continue
        raise SpecError(f"{where}: expected {kind}, got {data!r:.80}")

    return decode_union


def _expect(holds: bool, where: str, kind: Any, data: Any) -> None:
    if not holds:
        raise SpecError(f"{where}: expected {getattr(kind, '__name__', kind)}, got {data!r:.80}")
