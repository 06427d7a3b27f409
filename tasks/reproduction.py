"""The body of the scripts that ``sweep repro`` writes: eager, compiled and a float64 reference from one state, and how they differ.

``reproduce`` is given a function that builds the model and the settings of the task; ``tasks.comparison``, ``tasks.judgement`` and
``tasks.shaken`` have the rules, ``tasks.dropout`` what eager leaves out, ``tasks.draws`` which random numbers it draws. All six are copied
into each script, so they need torch and nothing else of this project.

A script exits with 0 if compiled agrees with eager, 1 if it does not or an arm fails, 2 if this machine has no such device.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import importlib.metadata
import platform
import random
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import _dynamo as dynamo
from torch.utils import _pytree as pytree

from tasks.comparison import Finding, Rule, errors_of, leaves, rule_of
from tasks.draws import Draws, inductor_settings, recorded, same_draws
from tasks.dropout import neutralise_dropout, undropped
from tasks.judgement import (
    Randomness,
    Results,
    changes_of,
    compare_all,
    draws_others,
    eager_errors,
    gradient_of,
    identical,
    loss_rounding,
    movement,
    randomness_of,
    said,
    seed_limit,
    with_rounded_losses,
)
from tasks.shaken import judged_again, shake

Model = tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any], Callable[[Any], torch.Tensor]]
"""Module, positional and keyword inputs, and the loss of its outputs."""

SHOWN = 40
EXIT_SAME, EXIT_DIFFERENT, EXIT_NO_DEVICE = 0, 1, 2


@dataclass(frozen=True)
class Settings:
    """A task as it was planned. ``autocast_dtype`` None: float16 on CUDA and bfloat16 on the CPU, if ``dtype`` is amp.

    ``random_numbers`` is what the task found out; None if it did not.
    """

    mode: str
    device: str
    seed: int
    dtype: str
    tf32: bool
    autocast_dtype: str | None
    optimizer: str
    compile: dict[str, Any]  # the arguments of torch.compile
    iterations: int
    tolerance: float
    random_numbers: str | None = None
    threads: int | None = None
    versions: dict[str, str | None] = field(default_factory=dict)

    def autocast(self, device: torch.device) -> torch.dtype | None:
        name = self.autocast_dtype or ("float16" if device.type == "cuda" else "bfloat16")
        return getattr(torch, name) if self.dtype == "amp" else None

    def rule(self, device: torch.device) -> Rule:
        return rule_of(self.tolerance, self.autocast(device), tf32=device.type == "cuda" and self.tf32)


def reproduce(build: Callable[[torch.device], Model], settings: Settings) -> int:
    """Run the task and print what came of it; the exit status."""
    device = _device(settings)
    if device is None:
        return EXIT_NO_DEVICE
    _print_versions(settings.versions)
    _tf32(settings.tf32, device)
    arms = _Arms(_seeded(build, settings.seed, device), settings, device)
    if dynamo.config.repro_after is not None:
        return _for_minifier(arms)
    rule = settings.rule(device)
    try:
        reseed = arms.random is Randomness.NEGLIGIBLE
        drawn: Draws = []
        truth_drawn: Draws = []
        decisive = arms.random is Randomness.DECISIVE
        eager_step = recorded(arms.eager, drawn if decisive else None)
        eager = arms.run("eager", eager_step)
        truth = arms.reference(truth_drawn if decisive else None)
        if decisive and truth and draws_others(eager, truth, rule, same_draws(truth_drawn, drawn)):
            print("no float64 reference: it draws other random numbers than eager")
            truth = {}
        again = arms.run("eager, again", eager_step, seed_offset=int(reseed))
        rounding = arms.loss_rounding(rule.epsilon)
        compiled = arms.run("compiled", arms.compile())
    except Exception:  # noqa: BLE001 - what failed is what a script is to show
        traceback.print_exc()
        print(f"\n{arms.running}: fails, see above")
        return EXIT_DIFFERENT
    errors = eager_errors(eager, again, truth)
    errors = with_rounded_losses(errors, rounding)
    findings = compare_all(eager, compiled, truth, errors, rule)
    findings, remark = judged_again(findings, eager, rule, lambda _: arms.run_shaken(rule.epsilon), said)
    return _print_findings(findings, eager, compiled, reseed or identical(eager, again), remark)


class _Arms:
    """A model with its step, and the state that every arm starts from."""

    def __init__(self, model: Model, settings: Settings, device: torch.device) -> None:
        self.module, self.args, self.kwargs, self.loss = model
        self.settings, self.device = settings, device
        self.autocast = settings.autocast(device)
        self.running = "eager"
        neutralise_dropout(self.module)
        for parameter in self.module.parameters():
            parameter.requires_grad_(parameter.requires_grad and settings.mode == "training")
        self.optimizer = _optimizer(settings, self.module, device)
        self.tensors = [*_named_state(self.module).values(), *_tensors((self.args, self.kwargs))]
        self.copies = [tensor.detach().clone() for tensor in self.tensors]
        self.initial = {name: tensor.detach().clone() for name, tensor in _named_state(self.module).items()}

    def step(self) -> Any:
        return self.train() if self.settings.mode == "training" else self.infer()

    def eager(self) -> Any:
        """The step that compiled is compared with."""
        return undropped(self.step)()

    def train(self) -> torch.Tensor:
        self.module.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, dtype=self.autocast) if self.autocast else contextlib.nullcontext():
            loss = self.loss(self.module(*self.args, **self.kwargs))
        loss.backward()  # type: ignore[no-untyped-call]
        if self.optimizer is not None:
            self.optimizer.step()
        return loss

    def infer(self) -> Any:
        with torch.no_grad(), torch.autocast(self.device.type, dtype=self.autocast) if self.autocast else contextlib.nullcontext():
            return self.module(*self.args, **self.kwargs)

    def loss_rounding(self, epsilon: float) -> float:
        if self.settings.mode != "training":
            return 0.0
        self.restore()
        return loss_rounding(self.loss, self.infer, epsilon)

    def compile(self) -> Callable[[], Any]:
        """The compiled step. Inductor draws eager's random numbers where the model needs any."""
        from torch._inductor import config

        self.running = "compiled"
        arguments = dict(self.settings.compile)
        dynamo.config.suppress_errors = bool(arguments.pop("suppress_errors"))
        dynamo.config.fail_on_recompile_limit_hit = not dynamo.config.suppress_errors
        if arguments["backend"] == "inductor":
            for name, value in self._draws.items():
                setattr(config, name, value)
        compiled: Callable[[], Any] = torch.compile(self.step, **arguments)
        return compiled

    @contextlib.contextmanager
    def options_for_the_process(self) -> Iterator[dict[str, Any]]:
        """Set what the task gives to Inductor as mode and options; what is left of the arguments of torch.compile."""
        from torch._inductor import config, list_mode_options

        arguments = {name: value for name, value in self.settings.compile.items() if name != "suppress_errors"}
        if arguments["backend"] != "inductor":
            yield arguments
            return
        mode, options = arguments.pop("mode"), arguments.pop("options")
        found = {**(list_mode_options(mode) if mode else {}), **(options or {}), **self._draws}
        with config.patch({name.replace("-", "_"): value for name, value in found.items()}):
            yield arguments

    @property
    def _draws(self) -> dict[str, bool]:
        return inductor_settings(as_eager=self.random is Randomness.DECISIVE)

    @functools.cached_property
    def random(self) -> Randomness:
        """What random numbers do to the step: as the task found, or else as found here."""
        if self.settings.random_numbers is not None:
            return Randomness(self.settings.random_numbers)
        limit = seed_limit(self.settings.rule(self.device))
        autocast, self.autocast = self.autocast, None
        _tf32(False, self.device)
        try:
            first = {name: _kept(value) for name, value in self._draw(0).items()}
            repeated, other = (movement(first, self._draw(offset)) for offset in (0, 1))
        finally:
            self.autocast = autocast
            _tf32(self.settings.tf32, self.device)
        return randomness_of(other, repeated, limit)

    def run(self, name: str, step: Callable[[], Any], seed_offset: int = 0) -> Results:
        """Restore the state, step, and gather everything that is compared."""
        self.running = name
        self.restore(seed_offset)
        return self._collect(step, self.initial)

    def run_shaken(self, epsilon: float) -> Results:
        """The same of eager with shaken parameters, from which changes are counted then."""
        self.running = "eager, shaken"
        self.restore()
        shake(self.module, epsilon)
        return self._collect(self.eager, {name: one.detach().clone() for name, one in _named_state(self.module).items()})

    def _collect(self, step: Callable[[], Any], initial: dict[str, torch.Tensor]) -> Results:
        found: dict[str, Any] = {}
        for index in range(self.settings.iterations):
            result = step()
            if self.settings.mode == "training":
                found[f"loss.{index}"] = result.detach().clone()
            elif index == self.settings.iterations - 1:
                found |= {name: _kept(value) for name, value in leaves(result, "output")}
        if self.settings.mode == "training":
            found |= {f"gradient.{name}": _kept(gradient_of(one)) for name, one in self.module.named_parameters()}
        with torch.no_grad():
            found |= {name: change.clone() for name, change in changes_of(_named_state(self.module).items(), initial).items()}
        return found

    def reference(self, drawn: Draws | None) -> Results:
        """The same in float64, without autocast; nothing where that does not run. ``drawn`` gets the random numbers, unless it is None."""
        self.running = "float64 reference"
        self.restore()
        _tf32(False, self.device)
        try:
            module = copy.deepcopy(self.module).double()
            args, kwargs = pytree.tree_map_only(torch.Tensor, _double, (self.args, self.kwargs))
            return _Arms((module, args, kwargs, self.loss), _in_float64(self.settings), self.device).reference_run(drawn)
        except Exception as error:  # noqa: BLE001 - many models have an operator without a float64 kernel
            print(f"no float64 reference: {said(error)}")
            return {}
        finally:
            _tf32(self.settings.tf32, self.device)

    def reference_run(self, drawn: Draws | None) -> Results:
        return self.run("float64 reference", recorded(self.eager, drawn))

    @torch.no_grad()
    def restore(self, seed_offset: int = 0) -> None:
        for tensor, copied in zip(self.tensors, self.copies, strict=True):
            tensor.copy_(copied)
        for value in pytree.tree_leaves([] if self.optimizer is None else list(self.optimizer.state.values())):
            if isinstance(value, torch.Tensor):
                value.zero_()
        for parameter in self.module.parameters():
            if parameter.grad is not None:
                (parameter.grad._values() if parameter.grad.is_sparse else parameter.grad).fill_(float("nan"))  # noqa: SLF001
        _seed(self.settings.seed + seed_offset)

    def _draw(self, seed_offset: int) -> Results:
        """What one step gives; until the next step."""
        self.restore(seed_offset)
        found = dict(leaves(self.eager(), "output"))
        if self.settings.mode == "training":
            found |= {f"gradient.{name}": gradient_of(one) for name, one in self.module.named_parameters()}
        return found


def _for_minifier(arms: _Arms) -> int:
    """Run the compiled step only: the environment has switched torch's minifier on, which writes down the first graph that is wrong.

    It writes the configuration down as it is when a graph runs, so Inductor's options have to hold for the process and not for the call.
    """
    dynamo.config.repro_tolerance = arms.settings.tolerance
    dynamo.config.suppress_errors = False
    try:
        with arms.options_for_the_process() as arguments:
            arms.run("compiled", torch.compile(arms.step, **arguments))
    except Exception:  # noqa: BLE001 - printed, and told by the exit status
        traceback.print_exc()
        return EXIT_DIFFERENT
    return EXIT_SAME


def _device(settings: Settings) -> torch.device | None:
    parser = argparse.ArgumentParser(description="Run eager and compiled from one state and print how they differ.")
    parser.add_argument("--device", default=settings.device, help=f"cpu or cuda; recorded on {settings.device}")
    device = torch.device(parser.parse_args().device)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("this machine has no CUDA device; --device cpu runs the task there, with another compiler behind it", file=sys.stderr)
        return None
    return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device


def _print_versions(recorded: dict[str, str | None]) -> None:
    here = {"python": platform.python_version(), "torch": str(torch.__version__), "cuda": torch.version.cuda}
    print(f"{'':14}{'recorded':28}here")
    for name in recorded or here:
        found = here.get(name) or _installed(name)
        print(f"{name:14}{recorded.get(name) or '-':28}{found or '-'}")
    print()


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _print_findings(findings: list[Finding], eager: Results, compiled: Results, deterministic: bool, remark: str | None) -> int:
    """A table of the values, worst first. ``limit`` is how much of its limit a value takes up: above 1 it differs."""
    failing = [finding for finding in findings if not finding.passes]
    print(f"{'limit':>10}  {'relative':>10}  {'largest':>10}  {'eager err':>10}  {'compiled':>10}  value")
    for finding in sorted(findings, key=lambda finding: -finding.ratio)[: max(SHOWN, len(failing))]:
        sizes = _sizes(eager.get(finding.name), compiled.get(finding.name))
        numbers = (finding.ratio, *sizes, finding.eager_rmse, finding.compiled_rmse)
        shown = "  ".join(f"{'-':>10}" if number is None else f"{number:10.3g}" for number in numbers)
        print(f"{shown}  {finding.name}{': ' + finding.reason if finding.reason else ''}")
    if not deterministic:
        print("\neager does not repeat itself exactly")
    if remark is not None:
        print(f"\n{remark}")
    print(f"\n{len(failing)} of {len(findings)} values differ" if failing else f"\nall {len(findings)} values agree")
    return EXIT_DIFFERENT if failing else EXIT_SAME


def _sizes(eager: Any, compiled: Any) -> tuple[float | None, float | None]:
    """The relative distance of two tensors and their largest difference."""
    if not (isinstance(eager, torch.Tensor) and isinstance(compiled, torch.Tensor)):
        return None, None
    if eager.shape != compiled.shape or eager.numel() == 0 or not eager.is_floating_point():
        return None, None
    return errors_of(compiled, eager).relative, float((compiled.double() - eager.double()).abs().max())


def _seeded(build: Callable[[torch.device], Model], seed: int, device: torch.device) -> Model:
    _seed(seed)
    with torch.device(device):
        return build(device)


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    with contextlib.suppress(ImportError):
        import numpy

        numpy.random.seed(seed % 2**32)


def _tf32(allowed: bool, device: torch.device) -> None:
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = allowed
        torch.backends.cudnn.allow_tf32 = allowed


def _optimizer(settings: Settings, module: torch.nn.Module, device: torch.device) -> torch.optim.Optimizer | None:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if settings.mode != "training" or settings.optimizer == "none" or not parameters:
        return None
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=0.01, foreach=True)
    return torch.optim.Adam(parameters, lr=0.01, foreach=True, capturable=device.type == "cuda")


def _named_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    parameters = {f"parameter.{name}": one.detach() for name, one in module.named_parameters()}
    return parameters | {f"buffer.{name}": one for name, one in module.named_buffers()}


def _tensors(inputs: Any) -> Iterator[torch.Tensor]:
    yield from (leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor))


def _double(tensor: torch.Tensor) -> torch.Tensor:
    copied = tensor.detach().clone()
    return copied.double() if copied.is_floating_point() else copied


def _in_float64(settings: Settings) -> Settings:
    return Settings(**{**vars(settings), "dtype": "float32"})


def _kept(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value
