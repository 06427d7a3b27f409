"""``sweep validate``, ``plan`` and ``schema`` as a user meets them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from orchestrator import cli
from orchestrator.costs import Cost
from orchestrator.errors import ExitCode

SOUND = "schema_version: 1\nname: sound\nmatrix: {dtype: [amp]}\nsuites: {toy: [pass, {name: oom, note: a remark}]}\n"


@pytest.fixture
def sweep(tmp_path, monkeypatch, capsys):
    """Run the command line in an empty folder; gives exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["sweep", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    (tmp_path / "sound.yaml").write_text(SOUND)
    (tmp_path / "bad.yaml").write_text("schema_version: 1\nname: bad\nsuites: {toy: [bass]}\n")
    (tmp_path / "worse.yaml").write_text("a: [\n")
    return run


def test_validate_says_what_is_sound(sweep):
    code, out, err = sweep("validate", "sound.yaml")

    assert (code, err) == (ExitCode.PASSED, "")
    assert out.startswith("sound.yaml: sound; 2 models, digest ")


def test_validate_reports_every_error_of_every_manifest_on_stderr(sweep):
    code, out, err = sweep("validate", "worse.yaml", "sound.yaml", "bad.yaml", "missing.yaml")

    assert code == ExitCode.USAGE
    assert out.startswith("sound.yaml: sound")
    assert err.splitlines() == [
        "bad.yaml:3:16: suites.toy[0]: no model 'bass' in suite toy (did you mean 'pass'?)",
        "missing.yaml:1:1: no such file: missing.yaml",
        "worse.yaml:1:5: did not find expected node content while parsing a flow node",
    ]


def test_validate_as_json(sweep):
    code, out, _ = sweep("validate", "bad.yaml", "--json")

    assert code == ExitCode.USAGE
    message = "no model 'bass' in suite toy (did you mean 'pass'?)"
    assert json.loads(out) == {
        "valid": False,
        "problems": [{"file": "bad.yaml", "line": 3, "column": 16, "path": "suites.toy[0]", "message": message}],
    }
    assert json.loads(sweep("validate", "sound.yaml", "--json")[1]) == {"valid": True, "problems": []}


def test_plan_lists_tasks_with_reasons(sweep):
    code, out, err = sweep("plan", "sound.yaml", "--device", "cpu")

    assert (code, err) == (ExitCode.PASSED, "")
    assert [line.split() for line in out.splitlines()[1:3]] == [
        ["toy/oom/amp/training/inductor", "-", "0s", "new"],
        ["toy/pass/amp/training/inductor", "-", "0s", "new"],
    ]
    assert out.splitlines()[-3].startswith("2 tasks on cpu (2 new)")


def test_plan_as_json_has_whole_tasks(sweep):
    _, out, _ = sweep("plan", "sound.yaml", "--device", "cuda", "--json")
    answer = json.loads(out)

    assert (answer["manifest"], answer["device"], answer["planned"], answer["reasons"]) == ("sound", "cuda", 2, {"new": 2})
    first = answer["tasks"][0]
    assert (first["task_id"], first["suite"], first["model"], first["note"]) == ("toy/oom/amp/training/inductor", "toy", "oom", "a remark")
    assert first["digest"] == first["spec"]["digest"]


def test_plan_expanded_is_a_manifest(sweep, tmp_path):
    _, out, _ = sweep("plan", "sound.yaml", "--expand")
    (tmp_path / "expanded.yaml").write_text(out)

    assert yaml.safe_load(out)["deadlines"]["task_s"] == 2400.0
    assert sweep("validate", "expanded.yaml")[1].split()[-1] == sweep("validate", "sound.yaml")[1].split()[-1]


def test_plan_looks_for_a_gpu_only_if_the_manifest_leaves_it_open(sweep, tmp_path, monkeypatch):
    monkeypatch.setattr("orchestrator.cli.plan.NVIDIA_DRIVER", tmp_path / "sound.yaml")
    (tmp_path / "cpu.yaml").write_text(SOUND + "execution: {device: cpu}\n")

    assert "2 tasks on cuda" in sweep("plan", "sound.yaml")[1]
    assert "2 tasks on cpu" in sweep("plan", "cpu.yaml")[1]
    monkeypatch.setattr("orchestrator.cli.plan.NVIDIA_DRIVER", tmp_path / "missing")
    assert "2 tasks on cpu" in sweep("plan", "sound.yaml")[1]


def test_plan_knows_what_a_store_has(sweep, monkeypatch):
    digests = {task["task_id"]: task["digest"] for task in json.loads(sweep("plan", "sound.yaml", "--json", "--device", "cpu")[1])["tasks"]}
    done = "toy/pass/amp/training/inductor"
    monkeypatch.setattr(
        "orchestrator.store.finished_tasks", lambda root, name: {done: digests[done]} if (root, name) == ("r", "sound") else {}
    )
    monkeypatch.setattr("orchestrator.costs.recorded", lambda root, kind, gpu: {done: Cost(7000.0, 200.0)} if kind == "cpu" else {})
    arguments = ("plan", "sound.yaml", "--device", "cpu", "--results", "r")

    _, out, _ = sweep(*arguments)

    assert out.splitlines()[1].split() == [done, "-", "7200s", "done"]
    assert "(1 done, 1 new)" in out.splitlines()[-3]
    assert "what is left, 1 of 2, on 1 node" in out.splitlines()[-2]
    forecast = json.loads(sweep(*arguments, "--json")[1])["forecast"]
    assert (forecast["tasks"], forecast["makespan_s"] < 60) == (1, True)


def test_where_nothing_is_left_the_forecast_is_that_of_doing_it_again(sweep, monkeypatch):
    digests = {task["task_id"]: task["digest"] for task in json.loads(sweep("plan", "sound.yaml", "--json", "--device", "cpu")[1])["tasks"]}
    monkeypatch.setattr("orchestrator.store.finished_tasks", lambda root, name: digests)

    _, out, _ = sweep("plan", "sound.yaml", "--device", "cpu", "--results", "r")

    assert "nothing is left; all of it again on 1 node" in out.splitlines()[-2]
    assert "what is left takes about 0.0 h" in out.splitlines()[-3]


def test_a_machine_that_is_made_up_says_so(sweep, monkeypatch, tmp_path):
    monkeypatch.setattr("orchestrator.cli.plan.NVIDIA_DRIVER", tmp_path / "missing")

    def forecast(*arguments):
        text = sweep("plan", "sound.yaml", *arguments)[1].splitlines()[-2]
        return text, json.loads(sweep("plan", "sound.yaml", *arguments, "--json")[1])["forecast"]["assumed"]

    text, assumed = forecast("--device", "cuda")
    assert text.startswith("on 1 GPU with 16 cores (assumed: there is no GPU here), ")
    assert assumed == "there is no GPU here"
    for asked in (("--device", "cpu"), ("--gpus", "1")):
        text, assumed = forecast(*asked)
        assert "assumed" not in text
        assert assumed is None


def test_plan_of_an_empty_store_is_a_plan(sweep):
    assert "(2 new)" in sweep("plan", "sound.yaml", "--results", "nowhere")[1]


def test_plan_refuses_what_is_no_device(sweep):
    assert sweep("plan", "sound.yaml", "--device", "tpu") == (ExitCode.USAGE, "", "--device tpu: must be cpu or cuda\n")


def test_schema_is_printed_written_and_checked(sweep, tmp_path):
    _, printed, _ = sweep("schema")

    assert json.loads(printed)["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert sweep("schema", "--write", "s.json") == (ExitCode.PASSED, "", "")
    assert (tmp_path / "s.json").read_text() == printed
    assert sweep("schema", "--check", "s.json")[0] == ExitCode.PASSED
    (tmp_path / "s.json").write_text(printed.replace("seed", "sead"))
    code, out, err = sweep("schema", "--check", "s.json")
    assert (code, out) == (ExitCode.USAGE, "")
    assert "sweep schema --write s.json" in err
    assert sweep("schema", "--check", "missing.json")[0] == ExitCode.USAGE
    code, out, err = sweep("schema", "--write", "sound.yaml/s.json")
    assert (code, out) == (ExitCode.INFRASTRUCTURE, "")
    assert "cannot write" in err


def test_plan_says_what_it_comes_to_on_a_fleet(sweep):
    arguments = ("plan", "sound.yaml", "--gpus", "2", "--cpus-per-gpu", "4", "--price", "3600", "--json")
    forecast = json.loads(sweep(*arguments)[1])["forecast"]
    text = sweep(*arguments[:-1])[1].splitlines()

    assert (forecast["devices"], forecast["cores_per_device"], forecast["sharing"]) == (2, 4, 1)
    assert forecast["lower_bound_s"] <= forecast["makespan_s"]
    assert forecast["cost"] == pytest.approx(2 * forecast["makespan_s"])
    assert text[-2].startswith("on 2 GPUs with 4 cores each, 1 sharing a device, 2 at once: about 0 s; no order takes less than 0 s")
    assert text[-1] == f"0.00 GPU hours, {forecast['cost']:.2f} at 3600 an hour"


def test_plan_says_which_tasks_get_helpers(sweep, tmp_path, monkeypatch):
    head = "schema_version: 1\nname: helped\nmatrix: {dtype: [amp]}\nexecution: {compile_helpers: 3}\n"
    (tmp_path / "helped.yaml").write_text(head + "suites: {toy: [pass, oom, hang]}")
    seconds = {"pass": 80.0, "oom": 70.0, "hang": 30.0}
    costs = {f"toy/{name}/amp/training/inductor": Cost(cost_s) for name, cost_s in seconds.items()}
    monkeypatch.setattr("orchestrator.costs.recorded", lambda root, kind, gpu: costs)
    arguments = ("plan", "helped.yaml", "--results", str(tmp_path), "--gpus")

    assert "2 of them, from 70 s on, are longer than what a place has to do on average: helpers compile, too\n" in sweep(*arguments, "3")[1]
    assert "helpers" not in sweep(*arguments, "1")[1]


def test_a_plan_imports_neither_torch_nor_ray():
    code = (
        "import sys; from orchestrator import cli; sys.argv[1:] = ['plan', 'manifests/pt2.yaml', '--gpus', '8']\n"
        "try: cli.main()\nexcept SystemExit: pass\n"
        "assert not {'torch', 'ray', 'numpy', 'pyarrow'} & set(sys.modules), set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")
