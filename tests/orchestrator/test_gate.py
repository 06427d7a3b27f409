"""The gate: each rule by itself, what is ignored, bad policies, and the command's exit status."""

from __future__ import annotations

import json
import sys
import typing
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.cli import main
from orchestrator.compare import compare
from orchestrator.errors import ExitCode, ManifestError
from orchestrator.gate import DEFAULT_POLICY, PerTask, Policy, Score, Slower, load_policy, table, violations
from orchestrator.report.synthetic import failed, store_run, synthetic_run, true_logs

TRUTH = true_logs({"toy": 30})
BASE = synthetic_run(TRUTH, run_id="base")
FIRST = BASE.rows[0].task_id

ROOT = Path(__file__).parents[2]


def policy(tmp_path, text):
    path = tmp_path / "policy.yaml"
    path.write_text(f"schema_version: 1\n{text}\n")
    return load_policy(path)


def new(change):
    return replace(BASE, run_id="new", rows=tuple(change(row) if place == 0 else row for place, row in enumerate(BASE.rows)))


def slower(row, side="compiled_ms"):
    times = {"compiled_ms": row.compiled_ms / 0.8} if side == "compiled_ms" else {"eager_ms": row.eager_ms * 0.8}
    return replace(row, **times, **{name: getattr(row, name) * 0.8 for name in ("speedup", "speedup_low", "speedup_high")})


def broken(tmp_path, text, run):
    return violations(compare(BASE, run), policy(tmp_path, text))


@pytest.mark.parametrize(
    ("rule", "run"),
    [
        ("slower: {}", new(slower)),
        ("newly_failing: 0", new(failed)),
        ("missing: 0", replace(BASE, rows=BASE.rows[1:])),
        ("compile_s: {max_ratio: 1.5}", new(lambda row: replace(row, compile_s=row.compile_s * 2))),
        ("compiled_peak_mib: {max_ratio: 1.2}", new(lambda row: replace(row, compiled_peak_mib=row.compiled_peak_mib * 1.3))),
        ("graph_breaks: 0", new(lambda row: replace(row, graph_breaks=row.graph_breaks + 1))),
    ],
)
def test_each_rule_names_its_task(tmp_path, rule, run):
    (violation,) = broken(tmp_path, rule, run)
    assert violation.rule == rule.split(":")[0]
    assert violation.about == FIRST
    assert broken(tmp_path, rule, BASE) == ()
    assert broken(tmp_path, f"{rule}\nignore: [{{task: '*/{BASE.rows[0].model}/*', reason: known}}]", run) == ()
    assert FIRST in table((violation,))


@pytest.mark.parametrize(
    "rule", ["slower: {max_tasks: 1}", "slower: {by: 0.3}", "newly_failing: 1", "compile_s: {max_ratio: 3}", "missing: 1"]
)
def test_what_a_policy_allows_is_no_violation(tmp_path, rule):
    for run in (new(slower), new(failed), new(lambda row: replace(row, compile_s=row.compile_s * 2)), replace(BASE, rows=BASE.rows[1:])):
        assert [found for found in broken(tmp_path, rule, run) if found.rule == rule.split(":")[0]] == []


def test_a_small_increase_never_counts(tmp_path):
    run = new(lambda row: replace(row, compile_s=row.compile_s * 2))
    assert broken(tmp_path, "compile_s: {max_ratio: 1.5, min_increase: 1000}", run) == ()


def test_a_faster_baseline_breaks_no_rule_unless_asked(tmp_path):
    run = new(lambda row: slower(row, "eager_ms"))
    assert broken(tmp_path, "slower: {}", run) == ()
    assert len(broken(tmp_path, "slower: {moved: any}", run)) == 1


def test_the_score(tmp_path):
    run = replace(BASE, rows=tuple(map(slower, BASE.rows)))
    (violation,) = broken(tmp_path, "score: {max_drop: 0.05}", run)
    assert "0.8000 of the base's" in violation.found
    assert broken(tmp_path, "score: {max_drop: 0.25}", run) == ()
    nothing = replace(BASE, rows=tuple(map(failed, BASE.rows)))
    compared, score = broken(tmp_path, "score: {max_drop: 0.05}", nothing)
    assert (compared.rule, score.rule) == ("compared", "score")
    assert "not defined" in score.found


def test_a_comparison_of_nothing_breaks_every_policy(tmp_path):
    nothing = replace(BASE, rows=tuple(replace(row, batch_size=64) for row in BASE.rows))
    (violation,) = broken(tmp_path, "", nothing)
    assert (violation.rule, violation.found) == ("compared", "no task could be compared")


def test_tasks_that_were_not_compared(tmp_path):
    run = new(lambda row: replace(row, speedup_low=None))
    run = replace(run, rows=(*run.rows[:5], replace(run.rows[5], batch_size=64), *run.rows[6:]))
    assert broken(tmp_path, "", run) == ()
    assert broken(tmp_path, "max_not_compared: 2", run) == ()
    found = broken(tmp_path, "max_not_compared: 1", run)
    assert {violation.about: violation.found for violation in found} == {
        FIRST: "without an interval",
        BASE.rows[5].task_id: "not the same task in both",
    }
    assert (
        broken(tmp_path, f"max_not_compared: 0\nignore: [{{task: '*/{BASE.rows[5].model}/*', reason: known}}]", new(lambda row: row)) == ()
    )


def test_unclear_changes_count_only_if_asked(tmp_path):
    run = synthetic_run(TRUTH, seed=99, process_sd=0.02)
    assert broken(tmp_path, "slower: {}", run) == ()
    assert [found.rule for found in broken(tmp_path, "max_unclear: 0", run)] == ["max_unclear"]


def test_the_environment(tmp_path):
    elsewhere = replace(BASE, rows=tuple(replace(row, versions={**row.versions, "torch": "2.13.0"}, node="other") for row in BASE.rows))
    (violation,) = broken(tmp_path, "same_environment: true", elsewhere)
    assert (violation.about, violation.found) == ("torch", "2.13.0")
    assert broken(tmp_path, "same_environment: false", elsewhere) == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("slowr: {}", "slower"),
        ("slower: {max_tasks: -1}", "at least 0"),
        ("slower: {moved: eager}", "eager"),
        ("score: {}", "max_drop"),
        ("ignore: [{task: x}]", "reason"),
        ("slower: {}\nslower: {}", "slower"),
        ("score: [", "policy.yaml"),
    ],
)
def test_a_bad_policy_is_refused_by_line(tmp_path, text, words):
    with pytest.raises(ManifestError, match=r"policy\.yaml:\d+:\d+") as refusal:
        policy(tmp_path, text)
    assert words in str(refusal.value)


def test_an_absent_policy_is_a_clear_message(tmp_path):
    with pytest.raises(ManifestError, match=r"nowhere\.yaml"):
        load_policy(tmp_path / "nowhere.yaml")


def test_the_command_exits_5_with_a_table(tmp_path, monkeypatch, capsys):
    def sweep(*arguments):
        monkeypatch.setattr(sys, "argv", ["sweep", *arguments, "--results", str(tmp_path / "results")])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, *capsys.readouterr()

    store_run(str(tmp_path / "results"), BASE)
    store_run(str(tmp_path / "results"), new(slower))
    (tmp_path / "policy.yaml").write_text("schema_version: 1\nslower: {}\n")
    gate = ("--gate", str(tmp_path / "policy.yaml"))
    code, out, error = sweep("compare", "base", "new", *gate, "--json", "--confirm", str(tmp_path / "c.yaml"))
    assert code == ExitCode.REGRESSION
    assert FIRST in error
    assert "rule" in error
    assert [violation["about"] for violation in json.loads(out)["violations"]] == [FIRST]
    store_run(str(tmp_path / "results"), replace(BASE, run_id="again"))
    assert sweep("compare", "base", "again", *gate)[0] == ExitCode.PASSED
    code, out, error = sweep("compare", "base", "new", "--gate", "--json")
    assert (code, "breaks the built-in policy" in error) == (ExitCode.REGRESSION, True)
    assert json.loads(out)["violations"][0]["about"] == FIRST
    code, _, error = sweep("compare", "base", "base", *gate)
    assert code == ExitCode.USAGE
    assert "are one run" in error
    code, _, error = sweep("compare", "base", "nwe")
    assert code == ExitCode.USAGE
    assert "did you mean 'new'" in error


def test_the_example_is_the_built_in_policy_and_more_and_the_page_names_every_field():
    policy = load_policy(ROOT / "examples/gate.yaml")
    assert policy.model_copy(update={"max_unclear": None, "max_not_compared": None, "ignore": []}) == DEFAULT_POLICY
    page = (ROOT / "docs/comparing.md").read_text()
    for name, field in Policy.model_fields.items():
        parts = [part for part in (Score, Slower, PerTask) if part in typing.get_args(field.annotation)]
        for wanted in [f"{name}.{inner}" for part in parts for inner in part.model_fields] or [name]:
            assert f"`{wanted}`" in page
