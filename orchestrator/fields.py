"""The fields of a manifest: names, types, limits and their descriptions, from which the JSON Schema is made as well.

One file at a time and one field at a time: whatever needs several files or the names of models is checked in ``orchestrator.consistency``.
Which fields a file really gave is kept (``model_fields_set``), because files and defaults are merged field by field.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from orchestrator.secrecy import SECRET_NAME, holds_credentials
from tasks.spec import AccuracySpec, DeadlineSpec, MeasureSpec

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._+-]*$"
LABEL_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?$"
FACTORY_PATTERN = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"

Dtype = Literal["amp", "float32"]
Mode = Literal["inference", "training"]
Optimizer = Literal["none", "sgd", "adam"]
Label = Annotated[str, Field(pattern=LABEL_PATTERN)]
Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=100)]
PositiveFloat = Annotated[float, Field(gt=0)]
PositiveInt = Annotated[int, Field(ge=1)]

_MEASURE = MeasureSpec()
_ACCURACY = AccuracySpec()
_DEADLINES = DeadlineSpec()


def _require_scalar(value: Any) -> Any:
    if isinstance(value, (list, dict)):
        raise ValueError("must be a string, a number, true, false or null")
    return value


def _require_sharing(value: Any) -> Any:
    if value == "auto" or (type(value) is int and value >= 1):
        return value
    raise ValueError("must be 'auto' or an integer of at least 1")


Scalar = Annotated[str | int | float | bool | None, BeforeValidator(_require_scalar)]
Sharing = Annotated[int | Literal["auto"], BeforeValidator(_require_sharing)]


class Fields(BaseModel):
    """What every mapping of a manifest has in common: nothing unknown, nothing converted, nothing infinite."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=False)


class ShortForm(Fields):
    """A mapping that may be written as a bare value: that of its fields ``short_fields``."""

    @classmethod
    def short_fields(cls) -> tuple[str, ...]:
        raise NotImplementedError

    @classmethod
    def is_short(cls, value: Any) -> bool:
        raise NotImplementedError

    @model_validator(mode="before")
    @classmethod
    def _spell_out(cls, value: Any) -> Any:
        return dict.fromkeys(cls.short_fields(), value) if cls.is_short(value) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        whole = handler.resolve_ref_schema(handler(core_schema))
        one = dict(whole["properties"][cls.short_fields()[0]])
        return {"anyOf": [{key: item for key, item in one.items() if key not in ("title", "default")}, whole]}


class Matrix(Fields):
    """Every model is run in each combination of these."""

    dtype: list[Dtype] = Field(default=["float32", "amp"], min_length=1, description="float32, amp (autocast) or both.")
    mode: list[Mode] = Field(default=["training"], min_length=1, description="training, inference or both.")
    backend: list[str] = Field(default=["inductor"], min_length=1, description="Names under `backends`; `inductor` is always there.")


class Backend(Fields):
    """One way to call torch.compile."""

    backend: str = Field(default="inductor", min_length=1, description="The `backend` argument of torch.compile.")
    mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] | None = Field(
        default=None, description="The `mode` argument of torch.compile; null leaves it out. Not together with `options`."
    )
    dynamic: bool | None = Field(default=False, description="The `dynamic` argument: false for static shapes, null lets torch decide.")
    fullgraph: bool = Field(default=False, description="Fail at the first graph break.")
    options: dict[str, Scalar] = Field(default={}, description="The `options` argument, for example {epilogue_fusion: false}.")
    suppress_errors: bool = Field(
        default=False, description="Let frames that fail to compile run eagerly; such rows say that they fell back."
    )


class Precision(Fields):
    """What float32 and amp mean."""

    tf32: bool = Field(default=True, description="Allow TensorFloat-32 in matrix products and convolutions on CUDA.")
    autocast_dtype: Literal["float16", "bfloat16"] | None = Field(
        default=None, description="What amp casts to; null: float16 on CUDA and bfloat16 on the CPU."
    )


class Training(Fields):
    """The training step beyond forward, loss and backward."""

    optimizer: Optimizer = Field(default="none", description="The optimizer whose step is part of the timed training step.")


class Measurement(Fields):
    """Warm-up, pairs and the rule that ends the timing."""

    half_width: float = Field(
        default=_MEASURE.half_width, gt=0, lt=1, description="Stop when the interval of ln(speedup) is this wide to either side."
    )
    min_pairs: int = Field(default=_MEASURE.min_pairs, ge=2, description="Pairs of an eager and a compiled block to time at least.")
    max_pairs: int = Field(default=_MEASURE.max_pairs, ge=2, description="Pairs to time at most.")
    max_time_s: float = Field(default=_MEASURE.max_time_s, gt=0, description="Seconds of timing at most, per process.")
    block_iterations: int = Field(default=_MEASURE.block_iterations, ge=1, description="Timed iterations of a block.")
    warmup_max_s: float = Field(default=_MEASURE.warmup_max_s, gt=0, description="Seconds of warm-up at most.")
    processes: int = Field(default=_MEASURE.processes, ge=1, description="Fresh processes that each compile and time the model.")


class Accuracy(Fields):
    """The check of the compiled step against the eager one."""

    iterations: int = Field(default=_ACCURACY.iterations, ge=1, description="Steps to compare.")
    tolerance: PositiveFloat | None = Field(
        default=_ACCURACY.tolerance, description="Null: the tolerance of the suite for the mode and dtype."
    )
    enabled: bool = Field(default=_ACCURACY.enabled, description="False: time without comparing; rows say that accuracy was skipped.")


class Deadlines(Fields):
    """Seconds after which a phase, or a task as a whole, is killed."""

    start_s: float = Field(default=_DEADLINES.start_s, gt=0, description="Start of the process and imports.")
    build_s: float = Field(default=_DEADLINES.build_s, gt=0, description="Building the model and its inputs.")
    eager_s: float = Field(default=_DEADLINES.eager_s, gt=0, description="The first eager steps.")
    compile_s: float = Field(default=_DEADLINES.compile_s, gt=0, description="The first compiled step.")
    verify_s: float = Field(default=_DEADLINES.verify_s, gt=0, description="The accuracy check.")
    time_s: float = Field(default=_DEADLINES.time_s, gt=0, description="Warm-up and timing.")
    write_s: float = Field(default=_DEADLINES.write_s, gt=0, description="Writing the result.")
    task_s: float = Field(default=_DEADLINES.task_s, gt=0, description="The task as a whole: all phases of all its processes.")


class Retries(Fields):
    """Attempts beyond the first. Failures of a model are never tried again."""

    infrastructure: int = Field(default=2, ge=0, le=20, description="After lost nodes, dirty devices and the like.")
    quality: int = Field(default=1, ge=0, le=5, description="After a pass that the machine was not fit to measure: noisy, drifting.")


class Execution(Fields):
    """What a task asks of the cluster and how the driver schedules."""

    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: cuda if a node has a GPU, else cpu.")
    num_gpus: PositiveInt = Field(default=1, description="GPUs per task on CUDA.")
    num_cpus: PositiveFloat | None = Field(default=None, description="Cores per task; null: 1 on CUDA, 2 on the CPU.")
    accelerator: str | None = Field(
        default=None, min_length=1, description="Ray's accelerator type that nodes must have, for example H100."
    )
    labels: dict[Label, Label] = Field(default={}, description="Ray's labels that nodes must have, on any device: {pool: nightly}.")
    mix_accelerators: bool = Field(
        default=False,
        description="Let one run use several GPU models; its report then has separate tables for each, and no mean over them.",
    )
    memory_mib: PositiveInt | None = Field(default=None, description="Host memory per task, in MiB; null asks for none.")
    threads: PositiveInt | None = Field(default=None, description="Threads of torch in a task; null: as many as num_cpus.")
    compile_threads: PositiveInt | None = Field(
        default=None, description="Compile processes of Inductor in a task; null: as many as num_cpus."
    )
    compile_helpers: int = Field(
        default=0,
        ge=0,
        le=64,
        description="Compile processes beyond compile_threads in tasks that take longer than a place has to do on average.",
    )
    sharing: Sharing = Field(
        default=1,
        description="Tasks per GPU, or per CPU node, that may compile at once; timing is exclusive always. auto: by cores and memory.",
    )
    max_in_flight: PositiveInt | None = Field(
        default=None, description="Tasks submitted at once; null: those that fit and a sixteenth more."
    )
    cache: Literal["cold", "shared", "bundle"] = Field(
        default="cold",
        description="cold: an empty compile cache per process; shared: one per node and run; bundle: what earlier runs of a task kept.",
    )
    isolation: Literal["process", "inline"] = Field(
        default="process", description="inline runs tasks inside the Ray worker: for the toy suite, to test scheduling."
    )


class Tolerance(ShortForm):
    """An accuracy tolerance, for both modes or for each."""

    training: PositiveFloat | None = Field(default=None, description="Tolerance in training.")
    inference: PositiveFloat | None = Field(default=None, description="Tolerance in inference.")

    @classmethod
    def short_fields(cls) -> tuple[str, ...]:
        return ("training", "inference")

    @classmethod
    def is_short(cls, value: Any) -> bool:
        return not isinstance(value, (dict, list, Tolerance))


class ModelFields(Fields):
    """What can be set for one model, or under `defaults` for all models of a file."""

    batch_size: PositiveInt | None = Field(default=None, description="Samples per step; null: the suite's own default.")
    eval_batch_size: PositiveInt | None = Field(default=None, description="The batch size in inference, where it differs.")
    options: dict[str, Scalar] = Field(default={}, description="Passed to the suite's builder: seq_len, image_size and the like.")
    factory: Annotated[str, Field(pattern=FACTORY_PATTERN)] | None = Field(
        default=None, description="package.module:function that builds the model; the name is then free."
    )
    source: Literal["library", "checkout"] | None = Field(
        default=None, description="torchbench only: checkout takes the model from a real checkout."
    )
    tolerance: Tolerance | None = Field(
        default=None, description="Accuracy tolerance that this model needs; a number or {training: , inference: }."
    )
    tolerance_reason: str | None = Field(default=None, min_length=1, description="Why; required with a tolerance.")
    note: str | None = Field(default=None, min_length=1, description="A remark on the model; changes nothing.")
    optimizer: Optimizer | None = Field(default=None, description="In place of training.optimizer.")
    measurement: Measurement | None = Field(default=None, description="Over the manifest's measurement, field by field.")
    deadlines: Deadlines | None = Field(default=None, description="Over the manifest's deadlines, field by field.")
    num_cpus: PositiveFloat | None = Field(default=None, description="In place of execution.num_cpus.")
    dtypes: list[Dtype] | None = Field(default=None, min_length=1, description="Run the model in these dtypes of the matrix only.")


class Model(ModelFields, ShortForm):
    """One model of a suite: its name, or a mapping with the name and what differs from the defaults."""

    name: Name = Field(description="The model's name in its suite.")

    @classmethod
    def short_fields(cls) -> tuple[str, ...]:
        return ("name",)

    @classmethod
    def is_short(cls, value: Any) -> bool:
        return isinstance(value, str)


class Exclude(Fields):
    """Tasks that are planned as skipped, with the reason in their rows."""

    model: str = Field(min_length=1, description="SUITE/NAME, where * and ? match as in file names: timm/vit_*.")
    dtype: Dtype | None = Field(default=None, description="Only in this dtype.")
    mode: Mode | None = Field(default=None, description="Only in this mode.")
    backend: str | None = Field(default=None, description="Only with this backend.")
    reason: str = Field(min_length=1, description="Why; it is stored and shown.")


def _refuse_secret(name: str) -> str:
    if SECRET_NAME.search(name):
        raise ValueError("a secret does not belong in a manifest, which is stored with every run: set it on the nodes")
    if name.startswith("LD_"):
        raise ValueError("loads code into every process, or other libraries than the nodes have: set it on the nodes")
    return name


def _refuse_credentials(text: str) -> str:
    if holds_credentials(text):  # an error of a kind of its own: the message of others shows the value
        raise PydanticCustomError(
            "credentials", "a URI with a user or password in it does not belong in a manifest, which is stored with every run"
        )
    return text


VariableName = Annotated[str, AfterValidator(_refuse_secret)]
NoCredentials = Annotated[str, AfterValidator(_refuse_credentials)]


class Environment(Fields):
    """The software that a run finds on its nodes: what they have, and what is put on top of it."""

    image: str | None = Field(default=None, min_length=1, description="Container image of the nodes that `--kuberay` describes.")
    pip: list[NoCredentials] = Field(default=[], description="Requirements that pip installs on the nodes. Not together with `uv`.")
    uv: list[NoCredentials] = Field(default=[], description="Requirements that uv installs on the nodes, which is faster.")
    env_vars: dict[VariableName, NoCredentials] = Field(
        default={}, description="Environment variables of the driver and the tasks. No secrets: manifests are stored with their runs."
    )

    @model_validator(mode="after")
    def _one_installer(self) -> Self:
        if self.pip and self.uv:
            raise PydanticCustomError("installers", "pip and uv exclude each other: list everything under one of them")
        return self


class Submit(Environment):
    """What `sweep submit` hands to a remote cluster."""

    store: Annotated[NoCredentials, Field(min_length=1)] | None = Field(
        default=None, description="Where results go, as the cluster sees it: a shared path or s3://, gs:// URI."
    )
    entrypoint_num_cpus: float = Field(default=0.0, ge=0, description="Cores to reserve for the driver; 0: it runs on the head node.")
    entrypoint_num_gpus: float = Field(
        default=0.0, ge=0, description="GPUs to reserve for the driver, which uses none: to place it on a node that has some."
    )
    entrypoint_memory_mib: PositiveInt | None = Field(default=None, description="Host memory to reserve for the driver, in MiB.")
    entrypoint_resources: dict[str, PositiveFloat] = Field(default={}, description="Ray resources that the driver's node must have.")
    entrypoint_label_selector: dict[str, str] = Field(
        default={}, description="Labels that the driver's node must have, as Ray selects them."
    )
    stop_grace_s: float = Field(default=60.0, gt=0, description="Seconds between asking the driver to stop and killing it.")


class IncludedFile(Fields):
    """A file that manifests include: models, with their defaults and exclusions."""

    description: str | None = Field(default=None, description="What the file is for.")
    include: list[str] = Field(
        default=[], description="Further files, relative to this one. Entries here win over included ones, field by field."
    )
    defaults: ModelFields = Field(
        default_factory=ModelFields, description="Fields for the models that this file lists, where they set none."
    )
    suites: dict[str, Annotated[list[Model], Field(min_length=1)]] = Field(
        default={}, description="Models by suite: huggingface, timm, torchbench, toy, or an installed one."
    )
    exclude: list[Exclude] = Field(default=[], description="Tasks not to run, with reasons.")


class Manifest(IncludedFile):
    """A sweep."""

    schema_version: Literal[1] = Field(description="The version of this format.")
    name: Name = Field(description="Names the sweep in run ids and reports.")
    seed: int = Field(default=1337, ge=0, description="Seed of weights, inputs and orders.")
    matrix: Matrix = Field(default_factory=Matrix, description="What every model is run in.")
    backends: dict[Name, Backend] = Field(default={}, description="Configurations of torch.compile by name.")
    precision: Precision = Field(default_factory=Precision, description="TF32 and the dtype of AMP.")
    training: Training = Field(default_factory=Training, description="The training step.")
    weights: dict[str, PositiveFloat] = Field(
        default={},
        description="Weights of the dtypes in the score; they sum to 1. Default: amp 0.75 and float32 0.25, or 1 for a single dtype.",
    )
    measurement: Measurement = Field(default_factory=Measurement, description="How to time.")
    accuracy: Accuracy = Field(default_factory=Accuracy, description="How to compare.")
    deadlines: Deadlines = Field(default_factory=Deadlines, description="When to give up.")
    retries: Retries = Field(default_factory=Retries, description="When to try again.")
    execution: Execution = Field(default_factory=Execution, description="Resources and scheduling.")
    submit: Submit | None = Field(default=None, description="For `sweep submit`.")
    environments: dict[Name, Environment] = Field(
        default={}, description="Software to compare, by name: a run each. Over `submit`, of which env_vars merge by name."
    )
