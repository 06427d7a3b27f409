"""docs/failures.md, generated from the policy and from what the last storm printed.

``python -m orchestrator.failure_table > docs/failures.md``
"""

from __future__ import annotations

import sys
from pathlib import Path

from orchestrator.policy import INFRASTRUCTURE, QUARANTINE_AFTER_TASKS, RULES, Rule
from tasks.spec import FailureClass

PRODUCED_BY: dict[FailureClass, str] = {
    FailureClass.MODEL: "tests/tasks/execute/test_failures.py::test_a_model_that_fails_in_eager_mode",
    FailureClass.COMPILER: "tests/tasks/execute/test_failures.py::test_a_compiler_that_fails",
    FailureClass.ACCURACY: "tests/tasks/execute/test_planted_faults.py::test_a_wrong_gradient_of_one_parameter",
    FailureClass.DEVICE_OOM: "tests/orchestrator/test_sweep.py::test_out_of_memory_with_neighbours_means_once_more_alone",
    FailureClass.HOST_OOM: "tests/tasks/test_supervisor.py::test_every_kind_of_end_is_told_apart_and_leaves_nothing",
    FailureClass.DISK_FULL: "tests/tasks/test_full_disk.py::test_a_disk_that_others_filled_is_no_fault_of_the_task",
    FailureClass.DEADLINE: "tests/tasks/test_supervisor.py::test_a_phase_that_takes_too_long_is_ended_with_its_stacks_in_the_log",
    FailureClass.CRASH: "tests/ray/test_cluster.py::test_a_crash_costs_one_task_and_no_ray_worker",
    FailureClass.UNSUPPORTED: "tests/tasks/execute/test_failures.py::test_a_package_that_is_missing",
    FailureClass.EXCLUDED: "tests/orchestrator/test_sweep.py::test_a_run_in_which_everything_is_excluded_has_measured_nothing",
    FailureClass.DEVICE: "tests/tasks/test_residue.py::test_an_attempt_on_a_dirty_gpu_is_an_infrastructure_failure",
    FailureClass.WORKER_LOST: "tests/ray/test_cluster.py::test_the_death_of_a_supervisor_is_a_lost_worker",
    FailureClass.NODE_LOST: "tests/ray/test_nodes.py::test_a_node_that_is_removed_is_noticed_and_its_task_runs_elsewhere",
    FailureClass.UNSCHEDULED: "tests/ray/test_failures.py::test_a_task_for_which_there_is_never_room_ends_in_a_row",
    FailureClass.INTERNAL: "tests/ray/test_cluster.py::test_a_mistake_on_the_node_is_no_death_of_it",
}
"""Failure class -> the test that makes it happen."""

HEAD = f"""\
# Failures

Every task ends in exactly one row, with a `status` and, unless it passed, a `failure_class`. The class decides what happens next. This page
is generated from `orchestrator/policy.py` by `make schema`; a test keeps it fresh.

An infrastructure failure is tried again as often as the manifest's `retries.infrastructure` says; all infrastructure classes share that
number. A node on which {QUARANTINE_AFTER_TASKS} different tasks fail for a reason that makes it suspect gets no more tasks in that
run, unless it is the last one that could run them. `device` counts against the GPU alone where the node has several.

| failure class | tried again | where | makes its node suspect | why | produced by |
|---|---|---|---|---|---|
"""


STORM = Path(__file__).parents[1] / "docs" / "data" / "storm.md"  # the table of `make chaos`, with machine, date and command


def page() -> str:
    """The whole page."""
    return HEAD + "".join(_line(failure, rule) for failure, rule in RULES.items()) + "\n" + STORM.read_text()


def _line(failure: FailureClass, rule: Rule) -> str:
    again = {0: "no", 1: "once", INFRASTRUCTURE: "`retries.infrastructure` times"}[rule.retries]
    if rule.backoff_s:
        again += f", after {rule.backoff_s:g} s, doubling"
    where = (
        "with the device to itself"
        if rule.alone
        else "elsewhere, if there is another node"
        if rule.elsewhere
        else "anywhere"
        if rule.retries
        else ""
    )
    suspect = "yes" if rule.suspect else "no"
    return f"| `{failure.value}` | {again} | {where} | {suspect} | {rule.why} | `{PRODUCED_BY[failure]}` |\n"


if __name__ == "__main__":
    sys.stdout.write(page())
