"""The table of options, which the orchestrator reads, says what the builders say when they are asked, before they build anything."""

from __future__ import annotations

import pytest
import torch

from tasks.suites import torchvision_compat
from tasks.suites.benchmark import BuildRequest
from tasks.suites.loader import _torchbench_builder
from tasks.suites.torchbench import CONFIGURED_BUILDERS, EXTRA, MODELS, OPTIONS

BUILDERS = {entry.builder: name for name, entry in (MODELS | EXTRA).items()}


class AskedError(Exception):
    pass


class Asking(BuildRequest):
    def check_options(self, known):
        raise AskedError(sorted(known))


def test_every_builder_takes_what_the_table_says():
    torchvision_compat.prepare()
    assert set(OPTIONS) | CONFIGURED_BUILDERS <= set(BUILDERS)
    for builder in set(BUILDERS) - CONFIGURED_BUILDERS:
        name = BUILDERS[builder]
        with pytest.raises(AskedError) as asked:
            _torchbench_builder(name)(Asking(name, "training", torch.device("cpu")))
        assert asked.value.args[0] == sorted(OPTIONS.get(builder, ())), builder
