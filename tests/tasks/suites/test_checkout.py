"""Models out of a TorchBench checkout; a small one that the test writes stands in for it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tasks.spec import ModelSpec
from tasks.suites import checkout
from tasks.suites.benchmark import BuildRequest, UnsupportedModelError
from tasks.suites.loader import load

CPU = torch.device("cpu")
GUARD = """
    import torch
    from torch import nn

    class Guard(type):
        def __call__(cls, *args, **kwargs):  # as TorchBench's own metaclass, it hides the constructor's signature
            return super().__call__(*args, **kwargs)
"""
TODAYS = """
    class Model(metaclass=Guard):
        {attributes}

        def __init__(self, test, device, batch_size=None, extra_args=[]):
            self.test, self.device, self.batch_size = test, device, batch_size or 7
            {body}
            self.module = nn.Linear(4, 2)

        def get_module(self):
            return self.module, {inputs}
"""
OF_2022 = """
    class Model(metaclass=Guard):
        def __init__(self, test, device, jit, batch_size=None, extra_args=[]):
            assert jit is False
            self.batch_size = batch_size or 7
            self.module = nn.Linear(4, 2).half()

        def get_module(self):
            return self.module, [torch.ones(self.batch_size, 4).half()]
"""


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Writes models into a checkout; the process is put back as it was afterwards."""
    models = tmp_path / "torchbenchmark/models"
    models.mkdir(parents=True)
    (tmp_path / "torchbenchmark/__init__.py").touch()
    (models / "__init__.py").touch()
    monkeypatch.setenv("TORCHBENCH_ROOT", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(Path.cwd())  # and back afterwards
    monkeypatch.delenv("KALDI_ROOT", raising=False)

    def write(name, text=TODAYS, attributes="pass", body="pass", inputs="(torch.ones(self.batch_size, 4),)", package="models"):
        folder = tmp_path / "torchbenchmark" / package / name
        folder.mkdir(parents=True)
        (folder.parent / "__init__.py").touch()
        text = text.replace("{attributes}", attributes).replace("{body}", body).replace("{inputs}", inputs)
        (folder / "__init__.py").write_text(textwrap.dedent(GUARD + text))
        return tmp_path

    yield write
    for module in [module for module in sys.modules if module.split(".")[0] == "torchbenchmark"]:
        del sys.modules[module]
    os.environ.pop("KALDI_ROOT", None)


def from_checkout(name, mode="training", batch_size=None, **options):
    return load(ModelSpec("torchbench", name, batch_size=batch_size, options=options, source="checkout"), mode, CPU, 1)


def test_a_model_of_today(bench):
    root = bench("resnet18")
    benchmark = from_checkout("resnet18", batch_size=3)

    assert (benchmark.source, benchmark.batch_size, benchmark.args[0].shape) == ("checkout", 3, (3, 4))
    assert benchmark.fidelity == "TorchBench of an unknown commit"
    assert benchmark.module.training
    assert Path.cwd() == root
    benchmark.loss(benchmark.module(*benchmark.args)).backward()


def test_a_model_of_2022_and_half_precision_becomes_single(bench):
    bench("vgg16", OF_2022)
    benchmark = from_checkout("vgg16", "inference", batch_size=3)

    assert not benchmark.module.training
    assert {tensor.dtype for tensor in (*benchmark.module.parameters(), *benchmark.args)} == {torch.float32}


@pytest.mark.parametrize(("mode", "batch_size"), [("training", 16), ("inference", 8)])
def test_without_a_batch_size_it_is_that_of_the_reference_sweep(bench, mode, batch_size):
    bench("resnet18")
    assert from_checkout("resnet18", mode).batch_size == batch_size


def test_a_model_beyond_the_tables_chooses_its_batch_size_itself(bench):
    bench("brand_new", package="canary_models")
    benchmark = from_checkout("brand_new")

    assert benchmark.batch_size == 7
    assert "batch size 7 is TorchBench's own choice" in benchmark.fidelity


def test_a_model_that_allows_no_other_batch_size_is_not_asked_for_one(bench):
    bench("drq", attributes="ALLOW_CUSTOMIZE_BSIZE = False", body="assert batch_size is None")
    assert from_checkout("drq", batch_size=3).batch_size == 7


def test_inputs_by_name_are_keyword_arguments(bench):
    bench("resnet18", inputs="{'input': torch.ones(self.batch_size, 4)}")
    benchmark = from_checkout("resnet18", batch_size=2)

    assert benchmark.args == ()
    assert benchmark.module(**benchmark.kwargs).shape == (2, 2)


def test_what_the_harness_replaced_is_replaced(bench):
    bench("yolov3")
    bench("maml_omniglot", inputs="(torch.ones(32, 4),)")
    bench("basic_gnn_gcn", inputs="(torch.ones(2, 4), torch.ones(2, dtype=torch.int64))")

    assert from_checkout("yolov3", batch_size=2).args[0].shape == (2, 3, 384, 512)
    assert from_checkout("maml_omniglot").args[0].shape == (5, 4)
    nodes, edges = from_checkout("basic_gnn_gcn").args
    assert (nodes.requires_grad, edges.requires_grad) == (True, False)


def test_some_models_never_train_and_some_never_evaluate(bench):
    bench("vision_maskrcnn")
    bench("tts_angular")

    assert not from_checkout("vision_maskrcnn").module.training
    assert from_checkout("tts_angular", "inference").module.training


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise NotImplementedError('no train')", "cannot do training on cpu: no train"),
        ("raise AssertionError('run install.py first')", "lacks data.*install.py"),
        ("raise FileNotFoundError(2, 'No such file or directory', 'x.pt')", "lacks data"),
        ("raise AssertionError('the coco dataset is missing')", "lacks data"),
        ("raise RuntimeError('set HUGGING_FACE_HUB_TOKEN')", "is gated"),
        ("import a_package_that_nobody_has", "is not installed.*a_package_that_nobody_has"),
    ],
)
def test_what_a_checkout_lacks_is_unsupported(bench, body, message):
    bench("resnet18", body=body)
    with pytest.raises(UnsupportedModelError, match=message):
        from_checkout("resnet18")


def test_the_detector_keeps_as_few_boxes_as_the_harness_had_it_keep(bench):
    takes_arguments = TODAYS.replace("extra_args=[]", "extra_args=[], model_kwargs=None").replace("{body}", "self.kept = model_kwargs")
    returns_them = "{'kept': self.kept}"
    bench("vision_maskrcnn", takes_arguments, inputs=returns_them)
    bench("vgg16", takes_arguments, inputs=returns_them)

    assert from_checkout("vision_maskrcnn").kwargs == {"kept": {"box_detections_per_img": 4}}
    assert from_checkout("vgg16").kwargs == {"kept": None}


def test_a_missing_dependency_of_the_module_is_not_a_missing_model(bench):
    bench("resnet18", "\n    import a_package_that_nobody_has")
    with pytest.raises(UnsupportedModelError, match=r"is not installed.*a_package_that_nobody_has"):
        from_checkout("resnet18")
    with pytest.raises(UnsupportedModelError, match="has no model resnet19"):
        from_checkout("resnet19")


@pytest.mark.parametrize(
    "body",
    [
        "raise RuntimeError('CUDA out of memory')",
        "assert 1 + 1 == 3",
        "raise AssertionError('bad metadata of the dataloader')",
        "raise torch.OutOfMemoryError('x')",
    ],
)
def test_any_other_failure_is_the_models(bench, body):
    bench("resnet18", body=body)
    with pytest.raises((RuntimeError, AssertionError)):
        from_checkout("resnet18")


def test_a_process_group_is_opened_without_the_fixed_port(bench):
    original = torch.distributed.init_process_group
    with socket.create_server(("localhost", 0)) as taken:
        where = f"tcp://localhost:{taken.getsockname()[1]}"
        bench("moco", body=f"torch.distributed.init_process_group(backend='gloo', init_method='{where}', world_size=1, rank=0)")
        try:
            from_checkout("moco")
            assert torch.distributed.get_world_size() == 1
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
    assert torch.distributed.init_process_group is original


def test_without_a_checkout_it_says_how_to_name_one(monkeypatch, tmp_path):
    monkeypatch.delenv("TORCHBENCH_ROOT", raising=False)
    with pytest.raises(UnsupportedModelError, match="TORCHBENCH_ROOT or the option checkout"):
        from_checkout("resnet18")
    with pytest.raises(UnsupportedModelError, match="no TorchBench checkout"):
        from_checkout("resnet18", checkout=str(tmp_path))
    with pytest.raises(ValueError, match="did you mean 'checkout'"):
        from_checkout("resnet18", chekout=str(tmp_path))


def test_the_option_goes_before_the_environment(bench, monkeypatch):
    root = bench("resnet18")
    monkeypatch.setenv("TORCHBENCH_ROOT", "/nowhere")
    request = BuildRequest("resnet18", "training", CPU, options={"checkout": str(root)})
    assert checkout.find_root(request) == root


def test_the_commit_is_recorded_and_changes_too(tmp_path):
    def git(*arguments):
        identity = ("-c", "user.name=n", "-c", "user.email=e@example.org")
        return subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-q", "-m", "m")
    commit = git("rev-parse", "--short=8", "HEAD")

    assert checkout.revision(tmp_path) == commit
    (tmp_path / "a").write_text("2")
    assert checkout.revision(tmp_path) == f"{commit} with changes"


class SquashedNormal:
    mean = torch.tensor([1.0, 2.0])


def test_the_loss_is_the_harnesss():
    first, second = torch.tensor([1.0, 3.0]), torch.tensor([6.0])

    assert checkout.scalar_loss(first) == 2
    assert checkout.scalar_loss((first, second)) == 4
    assert checkout.scalar_loss(SimpleNamespace(logits=first, loss=second)) == 2
    assert checkout.scalar_loss(SquashedNormal()) == 3
