"""Plans: the same bytes every time; a digest that changes if and only if the number could."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.costs import Cost
from orchestrator.manifest import load_manifest
from orchestrator.plan import PlannedTask, Reason, digest, plan_tasks, side_by_side
from orchestrator.sharing import Sharing
from tasks import PROTOCOL_VERSION
from tasks.spec import (
    AccuracySpec,
    CompileSpec,
    DeadlineSpec,
    MeasureSpec,
    ModelSpec,
    PrecisionSpec,
    ResourceSpec,
    TaskSpec,
    decode,
    encode,
)
from tests.orchestrator.fakes import task

ROOT = Path(__file__).parents[2]
PT2 = ROOT / "manifests/pt2.yaml"


def plan(tmp_path, text, device="cpu", **options):
    (tmp_path / "m.yaml").write_text(f"schema_version: 1\nname: test\n{text}")
    return plan_tasks(load_manifest(tmp_path / "m.yaml"), device, **options)


def only(tmp_path, text, device="cpu"):
    (task,) = plan(tmp_path, f"matrix: {{dtype: [amp]}}\n{text}", device).tasks
    return task.spec


def ids(planned):
    return [task.spec.task_id for task in planned.tasks]


def as_bytes(planned):
    return json.dumps(
        [{"reason": task.reason, "skip": task.skip, "cost_s": task.cost_s, "spec": encode(task.spec)} for task in planned.tasks]
    )


def in_a_fresh_interpreter(code, **environment):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=os.environ | environment)


def test_a_calibration_set_is_a_few_models_with_processes_of_their_own(tmp_path):
    """The example of docs/manifest.md, beside the suites that it includes."""
    text = (ROOT / "docs/manifest.md").read_text()
    (example,) = (block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "name: calibrated" in block)
    (tmp_path / "suites").symlink_to(ROOT / "manifests/suites")
    (tmp_path / "m.yaml").write_text(example)
    specs = [task.spec for task in plan_tasks(load_manifest(tmp_path / "m.yaml"), "cuda").tasks]
    repeated = {spec.model.name for spec in specs if spec.measure.processes == 5}
    assert repeated == {"lcnet_050", "mixnet_l"}
    assert {spec.measure.processes for spec in specs if spec.model.name not in repeated} == {1}
    assert {spec.deadlines.task_s for spec in specs if spec.model.name in repeated} == {6000.0}
    assert all(spec.model.batch_size == 128 for spec in specs if spec.model.name in repeated)  # the rest is as in the included file


# --- what is planned --------------------------------------------------------------------------------------------------------------------


def test_every_model_in_every_combination(tmp_path):
    text = (
        "matrix: {mode: [inference, training], backend: [inductor, eager]}\nbackends: {eager: {backend: eager}}\nsuites: {toy: [pass, oom]}"
    )

    planned = plan(tmp_path, text)

    assert len(planned.tasks) == 16
    assert set(ids(planned)) == {
        f"toy/{model}/{dtype}/{mode}/{backend}"
        for model in ("pass", "oom")
        for dtype in ("amp", "float32")
        for mode in ("training", "inference")
        for backend in ("inductor", "eager")
    }


def test_a_task_is_complete(tmp_path):
    text = """\
seed: 5
matrix: {dtype: [amp], backend: [graphs]}
backends: {graphs: {mode: reduce-overhead, dynamic: null, fullgraph: true, suppress_errors: true}}
precision: {tf32: false, autocast_dtype: bfloat16}
training: {optimizer: sgd}
measurement: {half_width: 0.5, max_time_s: 3}
accuracy: {iterations: 3, tolerance: 0.5}
deadlines: {build_s: 7, task_s: 100}
execution: {num_cpus: 4, accelerator: H100, memory_mib: 512, threads: 3, compile_threads: 2, cache: shared}
suites:
  torchbench:
    - name: resnet18
      batch_size: 2
      options: {image_size: 64}
      optimizer: adam
      measurement: {min_pairs: 9}
      deadlines: {build_s: 8}
      num_cpus: 6
      tolerance: 0.25
      tolerance_reason: because
      note: a remark
"""
    planned = plan(tmp_path, text, "cuda")
    (task,) = planned.tasks
    expected = TaskSpec(
        task_id="torchbench/resnet18/amp/training/graphs",
        model=ModelSpec("torchbench", "resnet18", 2, options={"image_size": 64}),
        mode="training",
        backend="graphs",
        precision=PrecisionSpec("amp", False, "bfloat16"),
        compile=CompileSpec("inductor", "reduce-overhead", None, True, {}, True),
        measure=MeasureSpec(half_width=0.5, max_time_s=3.0, min_pairs=9),
        accuracy=AccuracySpec(iterations=3, tolerance=0.25),
        deadlines=DeadlineSpec(build_s=8.0, task_s=100.0),
        resources=ResourceSpec("cuda", 6.0, 1.0, "H100", 512, 3, 2),
        optimizer="adam",
        cache="shared",
        seed=5,
        manifest_digest=planned.manifest_digest,
    )

    assert task.spec == dataclasses.replace(expected, digest=digest(expected))
    assert (task.reason, task.skip, task.note) == (Reason.NEW, None, "a remark")
    assert decode(TaskSpec, json.loads(json.dumps(encode(task.spec)))) == task.spec


def test_what_the_device_decides(tmp_path):
    on_cpu, on_cuda = (only(tmp_path, "suites: {torchbench: [dcgan]}", device) for device in ("cpu", "cuda"))

    assert (on_cpu.precision.autocast_dtype, on_cuda.precision.autocast_dtype) == ("bfloat16", "float16")
    assert (on_cpu.resources.num_cpus, on_cuda.resources.num_cpus) == (2.0, 1.0)
    assert (on_cpu.resources.num_gpus, on_cuda.resources.num_gpus) == (0.0, 1.0)
    assert only(tmp_path, "execution: {accelerator: H100}\nsuites: {toy: [pass]}").resources.accelerator is None


def test_tasks_that_share_a_gpu_ask_for_their_share(tmp_path):
    assert only(tmp_path, "execution: {sharing: 4}\nsuites: {toy: [pass]}", "cuda").resources.num_gpus == 0.25
    (task, _) = plan(tmp_path, "execution: {sharing: auto}\nsuites: {toy: [pass]}", "cuda", sharing=Sharing(8)).tasks
    assert task.spec.resources.num_gpus == 0.125
    assert only(tmp_path, "execution: {sharing: auto}\nsuites: {toy: [pass]}", "cuda").resources.num_gpus == 1.0


def test_a_large_model_asks_for_the_part_of_a_gpu_that_it_needs(tmp_path):
    text = "execution: {sharing: auto}\nmatrix: {dtype: [amp]}\nsuites: {torchbench: [dcgan, yolov3], toy: [pass]}"
    costs = {"torchbench/yolov3/amp/training/inductor": Cost(1.0, peak_mib=71_250.0)}  # of 95000, which leaves half of what others may hold
    planned = plan(tmp_path, text, "cuda", costs=costs, sharing=Sharing(12, 16.0, 100_000))

    shares = {task.spec.model.name: task.spec.resources.num_gpus for task in planned.tasks}
    assert shares == {"dcgan": 0.0833, "yolov3": 0.5, "pass": 0.0833}


def test_what_a_model_holds_all_the_time_counts(tmp_path):
    text = "execution: {sharing: auto}\nmatrix: {dtype: [amp]}\nsuites: {huggingface: [DebertaV2ForMaskedLM], timm: [mobilevit_s]}"
    planned = plan(tmp_path, text, "cuda", sharing=Sharing(16, 16.0, 80_000))

    shares = {task.spec.model.name: task.spec.resources.num_gpus for task in planned.tasks}
    assert shares["mobilevit_s"] == 0.0625
    assert 0.2 < shares["DebertaV2ForMaskedLM"] < 0.4  # a billion parameters, nearly: weights, gradients, and what to go back to


def test_sharing_changes_what_a_task_asks_for_and_not_what_it_is(tmp_path):
    text = "suites: {torchbench: [dcgan]}"
    for device, shared in (("cuda", Sharing(12, 8.0, 100_000)), ("cpu", Sharing(2, 2.0))):
        (strict, _), (sharing, _) = (plan(tmp_path, text, device, sharing=wanted).tasks for wanted in (None, shared))

        assert sharing.spec.resources.num_cpus == {"cuda": 0.6666, "cpu": 1.0}[device]
        assert sharing.spec.resources.threads == max(1, int(strict.spec.resources.num_cpus))
        assert digest(sharing.spec) == sharing.spec.digest == strict.spec.digest


def test_a_model_that_never_passed_is_as_large_as_the_estimate_says(tmp_path):
    text = "matrix: {dtype: [amp]}\nsuites: {huggingface: [BartForConditionalGeneration, DistilBertForMaskedLM]}"
    failed = {f"huggingface/{name}/amp/training/inductor": Cost(1.0) for name in ("BartForConditionalGeneration", "DistilBertForMaskedLM")}
    bart, bert = sorted(plan(tmp_path, text, "cuda", costs=failed).tasks, key=lambda task: task.spec.model.name)

    assert bert.cost.peak_mib > bart.cost.peak_mib > 2048  # at its batch of 128


def test_inference_has_its_own_batch_tolerance_and_no_optimizer(tmp_path):
    text = (
        "training: {optimizer: adam}\nmatrix: {dtype: [amp], mode: [training, inference]}\nsuites: {torchbench: ["
        "{name: dcgan, batch_size: 2, eval_batch_size: 3, tolerance: {training: 0.1}, tolerance_reason: x}]}"
    )
    by_mode = {task.spec.mode: task.spec for task in plan(tmp_path, text).tasks}

    assert (by_mode["training"].model.batch_size, by_mode["inference"].model.batch_size) == (2, 3)
    assert (by_mode["training"].accuracy.tolerance, by_mode["inference"].accuracy.tolerance) == (0.1, None)
    assert (by_mode["training"].optimizer, by_mode["inference"].optimizer) == ("adam", "none")


def test_batch_sizes_of_the_suite_are_spelled_out(tmp_path):
    text = "matrix: {dtype: [amp], mode: [training, inference]}\nsuites: {torchbench: [dcgan]}"

    assert {task.spec.mode: task.spec.model.batch_size for task in plan(tmp_path, text).tasks} == {"training": 32, "inference": 256}


def test_a_model_can_be_restricted_to_dtypes(tmp_path):
    planned = plan(tmp_path, "suites: {toy: [{name: pass, dtypes: [amp]}, oom]}")

    assert ids(planned) == ["toy/oom/amp/training/inductor", "toy/oom/float32/training/inductor", "toy/pass/amp/training/inductor"]


def test_excluded_tasks_are_planned_last_and_say_why(tmp_path):
    text = """\
suites: {torchbench: [dcgan, yolov3], toy: [pass]}
exclude:
  - {model: torchbench/y*, dtype: amp, reason: overflows}
  - {model: "*/dcgan", mode: inference, reason: not here}
  - {model: "*/yolo??", reason: comes second}
"""
    planned = plan(tmp_path, text)

    assert [(task.spec.task_id, task.skip) for task in planned.tasks if task.skip] == [
        ("torchbench/yolov3/amp/training/inductor", "overflows"),
        ("torchbench/yolov3/float32/training/inductor", "comes second"),
    ]
    assert [task.reason for task in planned.tasks] == [Reason.NEW] * 4 + [Reason.EXCLUDED] * 2
    assert len(planned.to_run) == 4


def test_what_an_earlier_run_has_decided(tmp_path):
    text = "matrix: {dtype: [amp]}\nsuites: {toy: [pass, oom, hang]}"
    before = {task.spec.task_id: task.spec.digest for task in plan(tmp_path, text).tasks}
    finished = {"toy/pass/amp/training/inductor": before["toy/pass/amp/training/inductor"], "toy/oom/amp/training/inductor": "other"}

    reasons = {task.spec.model.name: task.reason for task in plan(tmp_path, text, finished=finished).tasks}

    assert reasons == {"pass": Reason.DONE, "oom": Reason.CHANGED, "hang": Reason.NEW}


# --- order ------------------------------------------------------------------------------------------------------------------------------


def test_the_longest_come_first_and_recorded_costs_beat_estimates(tmp_path):
    text = "matrix: {dtype: [amp]}\nsuites: {torchbench: [dcgan, yolov3], toy: [pass]}"

    assert [task.spec.model.name for task in plan(tmp_path, text).tasks] == ["yolov3", "dcgan", "pass"]
    measured = plan(
        tmp_path, text, costs={"toy/pass/amp/training/inductor": Cost(9e3, 1e3), "torchbench/yolov3/amp/training/inductor": Cost(1.0)}
    )
    assert [task.spec.model.name for task in measured.tasks] == ["pass", "dcgan", "yolov3"]
    assert measured.tasks[0].cost_s == 1e4


def test_tasks_that_would_outlast_the_others_get_helpers_and_stay_what_they_are(tmp_path):
    execution = "execution: {compile_threads: 2, compile_helpers: 3, num_cpus: 1}"
    text = f"matrix: {{dtype: [amp]}}\n{execution}\nexclude: [{{model: toy/oom, reason: x}}]\n"
    text += "suites: {toy: [pass, hang, oom, noisy]}"
    expected_s = {"pass": 9.0, "hang": 3.0, "oom": 5.0, "noisy": 6.0}
    costs = {f"toy/{name}/amp/training/inductor": Cost(cost_s) for name, cost_s in expected_s.items()}

    def helped(**options):
        tasks = plan(tmp_path, text, costs=costs, **options).tasks
        return {task.spec.model.name: task.spec.resources.compile_processes for task in tasks if task.skip is None}

    assert helped() == {"pass": 2, "hang": 2, "noisy": 2}
    assert helped(devices=3) == {"pass": 5, "hang": 2, "noisy": 2}  # a device has 6 s to do
    assert helped(sharing=Sharing(2, 4.0), devices=2) == {"pass": 5, "hang": 2, "noisy": 5}
    digests = {task.spec.task_id: task.spec.digest for task in plan(tmp_path, text).to_run}
    longest = "toy/pass/amp/training/inductor"
    assert helped(devices=3, finished={longest: digests[longest]}) == {"pass": 2, "hang": 2, "noisy": 5}  # of what is left
    assert helped(devices=3, finished=digests) == helped(devices=3)
    plans = [plan(tmp_path, text.replace("helpers: 3", f"helpers: {helpers}"), costs=costs, devices=3) for helpers in (0, 3)]
    without, with_them = ([planned.manifest_digest, *(task.spec.digest for task in planned.tasks)] for planned in plans)
    assert without == with_them


def with_share(name, cost_s, share):
    return PlannedTask(task(name, resources=ResourceSpec("cuda", 1.0, share)), Reason.NEW, None, Cost(cost_s))


def test_beside_large_tasks_start_small_ones_where_shares_are_of_memory_alone():
    large = [with_share(f"large.{number}", 100.0, 0.4) for number in range(4)]
    small = [with_share(f"small.{number:02}", 10.0, 0.01) for number in range(20)]
    longest_first = [*large, *small]

    assert side_by_side(reversed(longest_first), Sharing(4, 4.0)) == longest_first
    # Two of each start together. Each of the other large ones takes 15 device seconds beyond its quarter, and a small one leaves 2.4.
    mixed = side_by_side(longest_first, Sharing(4, 4.0, cores_decide=True))
    assert mixed == [*large[:2], *small[:9], large[2], *small[9:15], large[3], *small[15:]]
    assert side_by_side([], Sharing(4, 4.0, cores_decide=True)) == []


@given(st.lists(st.tuples(st.floats(0.1, 1e4), st.floats(0.001, 1.0)), max_size=30), st.integers(1, 24), st.booleans())
def test_the_order_is_of_all_tasks_and_memory_is_not_asked_for_before_its_time(tasks, places, cores_decide):
    entries = [with_share(f"t{number}", cost_s, share) for number, (cost_s, share) in enumerate(tasks)]
    order = side_by_side(entries, Sharing(places, float(places), cores_decide=cores_decide))

    assert sorted(order, key=lambda task: task.spec.task_id) == sorted(entries, key=lambda task: task.spec.task_id)
    if not cores_decide:
        assert [task.cost_s for task in order] == sorted((task.cost_s for task in entries), reverse=True)
        return
    shares = [entry.spec.resources.num_gpus for entry in order]
    lightest = sorted(shares)[:places]
    assert sum(shares[:places]) <= max(1.0, sum(lightest)) + 1e-9
    credit_s = 0.0
    for place in range(places, len(order)):
        excess_s = order[place].cost_s * (shares[place] - 1 / places)
        assert excess_s <= credit_s or shares[place] == min(shares[place:])
        credit_s -= excess_s


def test_inference_and_fewer_processes_cost_less(tmp_path):
    both = "matrix: {dtype: [amp], mode: [training, inference]}\nsuites: {torchbench: [dcgan]}"
    costs = {task.spec.mode: task.cost_s for task in plan(tmp_path, both).tasks}
    (twice,) = plan(tmp_path, "matrix: {dtype: [amp]}\nmeasurement: {processes: 2}\nsuites: {torchbench: [dcgan]}").tasks

    assert costs["inference"] < costs["training"]
    assert twice.cost_s == 2 * costs["training"]


def test_planning_twice_gives_the_same_bytes():
    assert as_bytes(plan_tasks(load_manifest(PT2), "cuda")) == as_bytes(plan_tasks(load_manifest(PT2), "cuda"))


def test_the_hash_seed_changes_nothing():
    code = """
import json
from orchestrator.manifest import load_manifest
from orchestrator.plan import plan_tasks
from tasks.spec import encode
print(json.dumps([encode(task.spec) for task in plan_tasks(load_manifest("manifests/toy.yaml"), "cpu").tasks]))
"""
    outputs = {in_a_fresh_interpreter(code, PYTHONHASHSEED=seed).stdout for seed in ("1", "2")}

    assert len(outputs) == 1


# --- digests ----------------------------------------------------------------------------------------------------------------------------

BASE = TaskSpec(
    task_id="timm/x/amp/training/inductor",
    model=ModelSpec("timm", "x", 8),
    mode="training",
    backend="inductor",
    precision=PrecisionSpec("amp", True, "float16"),
    resources=ResourceSpec("cuda", 2.0, 1.0),
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.floats(0, 2), st.text(max_size=3))
OPTIONS = st.dictionaries(st.sampled_from("abc"), SCALARS, max_size=3)
POSITIVE = st.floats(0.001, 1e6)

MOVES_THE_NUMBER = {
    "model": st.builds(
        ModelSpec,
        st.sampled_from(["timm", "toy"]),
        st.sampled_from("xy"),
        st.sampled_from([None, 8, 9]),
        st.sampled_from([None, "a:b"]),
        OPTIONS,
        st.sampled_from([None, "checkout"]),
    ),
    "mode": st.sampled_from(["training", "inference"]),
    "precision": st.builds(PrecisionSpec, st.sampled_from(["amp", "float32"]), st.booleans(), st.sampled_from([None, "float16"])),
    "compile": st.builds(
        CompileSpec, st.sampled_from(["inductor", "eager"]), st.sampled_from([None, "default"]), st.sampled_from([None, False]),
        st.booleans(), OPTIONS, st.booleans(),
    ),
    "measure": st.builds(
        MeasureSpec, POSITIVE, st.integers(2, 4), st.integers(5, 7), POSITIVE, st.integers(1, 3), POSITIVE, st.integers(1, 2)
    ),
    "accuracy": st.builds(AccuracySpec, st.integers(1, 3), st.none() | POSITIVE, st.booleans()),
    "optimizer": st.sampled_from(["none", "sgd", "adam"]),
    "cache": st.sampled_from(["cold", "shared"]),
    "seed": st.integers(0, 3),
    "aa": st.booleans(),
}  # fmt: skip
CHANGES_NOTHING = {
    "task_id": st.text(max_size=5),
    "backend": st.sampled_from(["inductor", "another name for it"]),
    "deadlines": st.builds(DeadlineSpec, POSITIVE, POSITIVE),
    "digest": st.text(max_size=5),
    "manifest_digest": st.text(max_size=5),
}
RESOURCES = st.builds(
    ResourceSpec,
    st.sampled_from(["cpu", "cuda"]),
    st.sampled_from([0.5, 1.0, 2.0, 2.5, 4.0]),
    st.sampled_from([0.0, 0.25, 1.0]),
    st.sampled_from([None, "H100"]),
    st.sampled_from([None, 64]),
    st.sampled_from([None, 1, 2]),
    st.sampled_from([None, 1, 2]),
    st.sampled_from(["process", "inline"]),
)


def identity(spec):
    """What of a task can move its number, as a reader of the documentation would list it."""
    resources = spec.resources
    cores = max(1, int(resources.num_cpus))
    moving = {name: encode(getattr(spec, name)) for name in MOVES_THE_NUMBER}
    return json.dumps([moving, resources.device, resources.threads or cores, resources.compile_threads or cores], sort_keys=True)


TASKS = st.builds(
    lambda resources, **others: dataclasses.replace(BASE, resources=resources, **others), RESOURCES, **MOVES_THE_NUMBER, **CHANGES_NOTHING
)


def test_every_field_of_a_task_is_either_in_its_digest_or_known_to_change_nothing():
    assert {field.name for field in dataclasses.fields(TaskSpec)} == {*MOVES_THE_NUMBER, *CHANGES_NOTHING, "resources"}


@settings(max_examples=100)
@given(TASKS, TASKS)
def test_digests_are_equal_if_and_only_if_nothing_that_moves_the_number_differs(left, right):
    assert (digest(left) == digest(right)) == (identity(left) == identity(right))


@settings(max_examples=100)
@given(st.data())
def test_one_change_at_a_time(data):
    name = data.draw(st.sampled_from([*MOVES_THE_NUMBER, *CHANGES_NOTHING, "resources"]))
    strategy = RESOURCES if name == "resources" else {**MOVES_THE_NUMBER, **CHANGES_NOTHING}[name]
    changed = dataclasses.replace(BASE, **{name: data.draw(strategy)})

    assert (digest(changed) == digest(BASE)) == (identity(changed) == identity(BASE))


def test_the_protocol_is_part_of_the_digest(monkeypatch):
    before = digest(BASE)
    monkeypatch.setattr("orchestrator.plan.PROTOCOL_VERSION", PROTOCOL_VERSION + 1)

    assert digest(BASE) != before


@pytest.mark.parametrize(
    "change",
    [
        "deadlines: {task_s: 1}",
        "retries: {infrastructure: 0}",
        "weights: {amp: 1}",
        "description: words",
        "execution: {max_in_flight: 3, memory_mib: 100, sharing: 2}",
        "precision: {autocast_dtype: bfloat16}",
        "backends: {other: {backend: eager}}",
        "defaults: {note: words}",
        "defaults: {batch_size: 32}",
    ],
)
def test_what_changes_no_number_changes_no_digest(tmp_path, change):
    models = "\nsuites: {torchbench: [dcgan]}"

    assert only(tmp_path, f"{change}{models}").digest == only(tmp_path, models).digest


def test_autocast_is_no_business_of_float32(tmp_path):
    digests = {
        plan(tmp_path, f"matrix: {{dtype: [float32]}}\nprecision: {{autocast_dtype: {autocast}}}\nsuites: {{toy: [pass]}}")
        .tasks[0]
        .spec.digest
        for autocast in ("float16", "bfloat16", "null")
    }

    assert len(digests) == 1


def test_the_order_of_options_changes_nothing(tmp_path):
    orders = ("{pairs: 9, noise: 0.1}", "{noise: 0.1, pairs: 9}")
    left, right = (only(tmp_path, f"suites: {{toy: [{{name: pass, options: {options}}}]}}") for options in orders)

    assert left.digest == right.digest
    assert left.manifest_digest == right.manifest_digest


def test_two_names_of_one_backend_give_one_digest(tmp_path):
    text = "matrix: {dtype: [amp], backend: [inductor, same]}\nbackends: {same: {backend: inductor}}\nsuites: {toy: [pass]}"

    assert len({task.spec.digest for task in plan(tmp_path, text).tasks}) == 1


# --- lightness --------------------------------------------------------------------------------------------------------------------------


def test_planning_imports_nothing_heavy():
    code = """
import sys
from orchestrator.cli import main
sys.argv = ["sweep", "plan", "manifests/pt2.yaml"]
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""
    done = in_a_fresh_interpreter(code)
    heavy = {"torch", "ray", "pyarrow", "numpy", "scipy", "transformers", "timm", "torchvision", "rich", "plotly", "jinja2", "pandas"}

    assert "326 tasks on cuda" in done.stdout
    assert heavy & set(done.stderr.split()) == set()
