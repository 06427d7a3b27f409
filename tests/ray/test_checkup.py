"""What ``sweep doctor`` finds on a cluster whose head takes no tasks, and on a node that claims to have GPUs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from ray.cluster_utils import Cluster

from orchestrator.checkup import examine
from orchestrator.errors import ExitCode

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster():
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


def test_a_healthy_cluster_passes_whole_and_every_gpu_is_tried(cluster, tmp_path):
    command = [sys.executable, "-m", "orchestrator", "doctor", "--address", cluster.address, "--results", str(tmp_path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    found = json.loads(done.stdout)
    assert done.returncode == ExitCode.PASSED, found
    assert [finding["facts"].get("toy tasks") for finding in found] == ["1 of 1 ran", "1 of 1 ran", None, None]
    assert [finding["what"].split()[0] for finding in found] == ["node", "node", "all", "store"]
    cluster.add_node(num_cpus=1, num_gpus=2)  # fewer cores than GPUs
    cluster.wait_for_nodes()
    words = {finding.facts["toy tasks"]: finding.problems for finding in examine(cluster.address, None) if "toy tasks" in finding.facts}
    assert sorted(words) == ["1 of 1 ran", "2 of 2 ran on GPU 0, 1"]
    assert not any("toy" in problem for problem in words["2 of 2 ran on GPU 0, 1"])
