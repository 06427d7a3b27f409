from __future__ import annotations

import dataclasses

import pytest
import torch

from tasks import execute
from tasks.channel import Channel
from tasks.environment import gpu_uuid
from tasks.spec import (
    Attempt,
    CompileSpec,
    FailureClass,
    MeasureSpec,
    ModelSpec,
    Phase,
    PrecisionSpec,
    ResourceSpec,
    Status,
    TaskSpec,
)
from tasks.supervisor import Finished, supervise

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

SHORT = MeasureSpec(half_width=0.02, max_pairs=12, max_time_s=5.0, warmup_max_s=10.0)
UNCOMPILED = CompileSpec(backend="aot_eager")


@pytest.fixture(autouse=True)
def tidy():
    """No state of the compiler, and no setting of torch, left behind."""
    threads = torch.get_num_threads()
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch._dynamo.reset()
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
    torch.cuda.empty_cache()


def task(model, **changes):
    spec = TaskSpec(
        task_id=f"{model.suite}/{model.name}",
        model=model,
        mode="training",
        backend="inductor",
        precision=PrecisionSpec("amp"),
        measure=SHORT,
        resources=ResourceSpec(device="cuda", num_gpus=1, threads=4, compile_threads=8),
    )
    return dataclasses.replace(spec, **changes)


def factory(name, where="tests.gpu.models", **changes):
    """A task on a model that takes no compiler to say what it has to say."""
    return task(ModelSpec("factory", name, factory=f"{where}:{name}"), **({"compile": UNCOMPILED} | changes))


def run(its_task):
    return execute.execute(its_task, Channel(None))


def run_in_worker(its_task, device):
    *_, last = supervise(its_task, Attempt("run", 1, gpu_ids=(gpu_uuid(device),)))
    assert isinstance(last, Finished)
    return last.outcome


class TestRealModels:
    def passes(self, result, device, recompiles=0):
        found = result.measurement
        assert (result.status, result.phase, result.error) == (Status.PASS, Phase.TIME, None), found
        assert (found.accuracy, found.autocast_dtype) == ("pass", "float16"), found.accuracy_reason
        assert found.reference.startswith("float64")
        assert found.speedup_low <= found.speedup <= found.speedup_high
        assert found.eager_device_ms is None or 0 < found.eager_device_ms < 1.05 * found.eager_ms
        assert found.compiled_device_ms is None or 0 < found.compiled_device_ms < 1.05 * found.compiled_ms
        assert min(found.eager_peak_mib, found.compiled_peak_mib) > found.parameters * 4 / 2**20
        assert (found.fell_back, found.recompiles, found.quality != "recompiled") == (False, recompiles, True)
        assert (found.device, found.gpu_uuid) == (torch.cuda.get_device_name(device), gpu_uuid(device))
        assert found.compile_s > 0.1
        return found

    def test_lennard_jones(self, device):
        found = self.passes(run(task(ModelSpec("torchbench", "lennard_jones"))), device)
        assert found.launch_bound is True

    def test_a_small_model_of_timm(self, device):
        pytest.importorskip("timm")
        # Depthwise convolutions: the gradient that eager leaves has another stride of size 1 than Inductor's, and a guard looks at it.
        self.passes(run(task(ModelSpec("timm", "lcnet_050"))), device, recompiles=1)


class TestFailures:
    def test_too_little_memory(self, device):
        result = run(factory("exhausting"))
        assert (result.status, result.phase, result.failure_class) == (Status.OOM, Phase.EAGER, FailureClass.DEVICE_OOM), result.error
        assert "CUDA out of memory" in result.error
        assert run(factory("mlp", "tests.tasks.models")).status is Status.PASS

    @pytest.mark.parametrize(("name", "message"), [("asserting", "device-side assert"), ("straying", "illegal memory access")])
    def test_an_error_of_the_device_is_the_models_and_not_the_next_tasks(self, name, message, device, node_directory):
        failed = run_in_worker(factory(name, mode="inference"), device)
        assert (failed.status, failed.failure_class) == (Status.FAIL_EAGER, FailureClass.MODEL), failed
        assert failed.phase is Phase.EAGER
        assert message in failed.error
        following = run_in_worker(factory("mlp", "tests.tasks.models"), device)
        assert following.status is Status.PASS, following
