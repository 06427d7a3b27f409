from __future__ import annotations

import importlib.metadata
import random
import sys
import types

import numpy
import pytest
import torch
from torch import nn

from tasks.spec import ModelSpec
from tasks.suites import loader
from tasks.suites.benchmark import Benchmark, UnsupportedModelError, mean_of_outputs
from tasks.suites.loader import load

CPU = torch.device("cpu")
LENNARD_JONES = ModelSpec("torchbench", "lennard_jones", batch_size=3)


class AffineWithScale(nn.Linear):
    def forward(self, x, scale=1.0):
        return super().forward(x) * scale


class Stray(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.FloatTensor(2))
        self.register_buffer("table", torch.from_numpy(numpy.zeros(2)))


@pytest.fixture
def factories(monkeypatch):
    """A module of factories; what they are asked is kept in ``requests``."""
    module = types.ModuleType("factories_of_a_test")
    module.requests = []

    def factory(result):
        def make(request):
            module.requests.append(request)
            return result() if callable(result) else result

        return make

    module.triple = factory(lambda: (nn.Linear(4, 2), (torch.ones(5, 4),), None))
    module.with_keywords = factory(lambda: (AffineWithScale(4, 2), ((torch.ones(5, 4),), {"scale": 0.0}), torch.sum))
    module.benchmark = factory(lambda: Benchmark(nn.Identity(), (torch.ones(1),), {}, torch.sum, 1, "factory", fidelity="mine"))
    module.stray = lambda _: (Stray(), (torch.ones(5, 4),), None)
    module.pair = factory(lambda: (nn.Linear(4, 2), (torch.ones(5, 4),)))
    module.bare_tensor = factory(lambda: (nn.Linear(4, 2), torch.ones(5, 4), None))

    def needy(_):
        import a_package_that_nobody_has  # noqa: F401

    module.needy = needy
    module.generators = lambda _: (nn.Identity(), (torch.rand(2), torch.tensor([random.random(), numpy.random.rand()])), None)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def from_factory(name, mode="training", **kwargs):
    return load(ModelSpec("mine", "model", factory=f"factories_of_a_test:{name}", **kwargs), mode, CPU, 1)


def test_the_default_batch_size_is_the_tables(factories):
    assert load(ModelSpec("torchbench", "lennard_jones"), "training", CPU, 1).batch_size == 1000


def test_equal_seeds_give_equal_weights_and_others_do_not():
    first, again, other = (load(LENNARD_JONES, "training", CPU, seed).module for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def test_every_generator_is_seeded(factories):
    first, again = from_factory("generators"), from_factory("generators")
    assert all(torch.equal(a, b) for a, b in zip(first.args, again.args, strict=True))


def test_models_are_built_on_the_device():
    benchmark = load(LENNARD_JONES, "training", torch.device("meta"), 1)
    assert {tensor.device.type for tensor in (*benchmark.module.parameters(), *benchmark.args)} == {"meta"}


def test_tensors_that_no_default_device_reaches_follow_the_model(factories):
    module = load(ModelSpec("mine", "model", factory="factories_of_a_test:stray"), "training", torch.device("meta"), 1).module
    assert {tensor.device.type for tensor in (*module.parameters(), *module.buffers())} == {"meta"}


def test_a_triple_becomes_a_benchmark_with_the_mean_as_its_loss(factories):
    benchmark = from_factory("triple", mode="inference")
    assert (benchmark.batch_size, benchmark.source, benchmark.module.training) == (5, "factory", False)
    assert benchmark.loss is mean_of_outputs


def test_a_pair_of_tuple_and_dict_are_args_and_kwargs(factories):
    benchmark = from_factory("with_keywords")
    assert benchmark.loss(benchmark.module(*benchmark.args, **benchmark.kwargs)) == 0.0


def test_a_factory_sees_the_request_and_may_return_a_benchmark(factories):
    benchmark = from_factory("benchmark", batch_size=7, options={"depth": 2})
    (request,) = factories.requests
    assert (request.name, request.mode, request.batch_size, request.options, request.device) == ("model", "training", 7, {"depth": 2}, CPU)
    assert benchmark.fidelity == "mine"


@pytest.mark.parametrize("name", ["pair", "bare_tensor"])
def test_anything_else_from_a_factory_is_a_type_error(factories, name):
    with pytest.raises(TypeError, match="the factory of model"):
        from_factory(name)


def test_a_missing_package_is_unsupported_and_named(factories):
    with pytest.raises(UnsupportedModelError, match=r"needs the Python package a_package_that_nobody_has.*pip install"):
        from_factory("needy")


def test_a_missing_factory_module_is_unsupported():
    with pytest.raises(UnsupportedModelError, match="no_such_package"):
        load(ModelSpec("mine", "model", factory="no_such_package.models:make"), "training", CPU, 1)


def test_a_module_missing_from_this_project_is_a_bug(monkeypatch):
    monkeypatch.setitem(sys.modules, "tasks.suites.timm", None)
    with pytest.raises(ModuleNotFoundError):
        load(ModelSpec("timm", "lcnet_050"), "training", CPU, 1)


@pytest.mark.parametrize(
    ("model", "mode", "message"),
    [
        (ModelSpec("nonesuch", "model"), "training", "unknown suite 'nonesuch'.*huggingface, timm, torchbench"),
        (ModelSpec("torchbench", "nonesuch"), "training", "no model 'nonesuch'"),
        (LENNARD_JONES, "dreaming", "unknown mode 'dreaming'"),
        (ModelSpec("mine", "model", factory="just_a_module"), "training", "package.module:function"),
        (ModelSpec("mine", "model", factory="math:nonesuch"), "training", "module math has no 'nonesuch'"),
        (ModelSpec("torchbench", "resnet18", batch_size=0), "training", "at least 1"),
    ],
)
def test_nonsense_is_a_value_error(model, mode, message):
    with pytest.raises(ValueError, match=message):
        load(model, mode, CPU, 1)


def test_an_installed_package_adds_a_suite(monkeypatch, factories):
    entry = importlib.metadata.EntryPoint("addition", "factories_of_a_test:benchmark", loader.ENTRY_POINTS)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: importlib.metadata.EntryPoints([entry]).select(group=group))
    assert load(ModelSpec("addition", "model"), "training", CPU, 1).fidelity == "mine"
    assert factories.requests[0].batch_size is None
