"""``sweep models``: the catalogue at once and without torch; what surveys answer, and what becomes of those that hang or die."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from orchestrator import catalogue, model_page, model_table
from orchestrator.errors import ExitCode
from orchestrator.model_table import known, of_manifests, plain
from orchestrator.survey import Survey
from tasks.suites.reference import HUGGINGFACE, TIMM
from tasks.suites.torchbench import EXTRA, MODELS
from tasks.suites.toy import MODELS as TOYS
from tests.tasks.suites.parameter_counts import PARAMETERS

ROOT = Path(__file__).parents[2]
SHIPPED = [ROOT / "manifests" / name for name in ("pt2.yaml", "extra.yaml", "pyhpc.yaml")]
TABLES = {"huggingface": HUGGINGFACE, "timm": TIMM, "torchbench": MODELS | EXTRA}
LIBRARY_BUILDERS = {"torchvision_models", "timm_models", "transformers_models"}
FROM_MANIFESTS = ("suite", "name", "sweep", "batch_size", "eval_batch_size", "note", "options", "dtypes")
HEAD = "schema_version: 1\nname: few\n"


def sweep(*arguments, without=("torch", "transformers", "timm", "ray"), timeout_s=300):
    block = f"import sys\nfor name in {without!r}: sys.modules[name] = None\nfrom orchestrator.cli import main; main()"
    command = [sys.executable, "-c", block, "models", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s)


def rows(done):
    assert done.stdout, done.stderr
    return {f"{row['suite']}/{row['name']}": row for row in json.loads(done.stdout)}


@pytest.fixture
def few(tmp_path):
    """A manifest of two models and one that cannot be."""

    def write(text):
        path = tmp_path / "few.yaml"
        path.write_text(HEAD + text)
        return path

    return write


def test_the_catalogue_needs_no_torch_and_has_every_model():
    done = sweep("--json")
    listed = rows(done)

    assert done.returncode == ExitCode.PASSED, done.stderr
    assert {key for key, row in listed.items() if row["sweep"] == "pt2"} == set(PARAMETERS)
    assert {f"torchbench/{name}" for name in EXTRA} <= set(listed)
    assert listed["torchbench/dcgan"]["source"] == "rebuilt"
    assert (listed["torchbench/dcgan"]["batch_size"], listed["torchbench/dcgan"]["eval_batch_size"]) == (32, 256)


def test_parameter_counts_are_those_of_the_reference():
    assert {row.key: row.parameters for row in known() if row.sweep == "pt2"} == PARAMETERS


def test_the_committed_table_is_that_of_the_manifests():
    listed = [{column: plain(row)[column] for column in FROM_MANIFESTS} for row in of_manifests(SHIPPED)]
    committed = [{column: plain(row)[column] for column in FROM_MANIFESTS} for row in known()]

    assert committed == listed, "make models"


def test_every_row_is_complete_and_agrees_with_the_suites_tables():
    for row in known():
        entry = TABLES[row.suite].get(row.name)
        library = row.suite != "torchbench" or entry.builder.partition(":")[0] in LIBRARY_BUILDERS
        assert row.source == ("library" if library else "rebuilt"), row.key
        assert row.parameters is not None, row.key
        assert row.eval_inputs, row.key
        assert row.inputs or row.sweep == "pyhpc", row.key
        assert row.batch_size == (entry.default_batch_size("training") if entry else row.batch_size), row.key
        assert row.eval_batch_size == (entry.default_batch_size("inference") if entry else row.eval_batch_size), row.key


def test_the_page_is_that_of_the_table():
    data = [json.loads(file.read_text()) for file in (model_page.CHECKED, model_page.BREAKS)]
    assert (ROOT / "docs/models.md").read_text() == model_page.page(known(), *data), "make models"


def test_every_model_of_the_reference_sweep_has_been_measured():
    checked = json.loads(model_page.CHECKED.read_text())
    assert set(checked["models"]) == {row.key for row in known() if row.sweep == "pt2"}
    failed = {name for name, found in checked["models"].items() if any("error" in found[dtype] for dtype in model_page.DTYPES)}
    assert failed == set(checked["mended"]), "each failure says what became of it"


def test_equal_tensors_of_the_page_are_counted():
    assert model_page.shorten("int64[2, 3], int64[2, 3], float32[1]") == "int64[2, 3] x2, float32[1]"


def test_a_column_of_graph_breaks_without_figures_is_left_out():
    breaks = {"about": "Seen on a CPU.", "models": {"a": {"cpu": 0, "reasons": ""}, "b": {"cpu": 3, "reasons": "", "upstream": "10"}}}
    checked = json.loads(model_page.CHECKED.read_text())

    section = model_page.page(known(), checked, breaks).partition("## Graph breaks of rebuilt models\n\n")[2]

    table = "| model | CPU | upstream |\n|---|---:|---:|\n| `a` | 0 |  |\n| `b` | 3 | 10 |\n"
    assert section == f"Seen on a CPU.\n\n{table}"


def test_graph_breaks_are_those_of_the_rebuilt_models_that_the_manifest_lists():
    found = json.loads(model_page.BREAKS.read_text())["models"]
    rebuilt = {row.name for row in known() if (row.suite, row.source, row.sweep) == ("torchbench", "rebuilt", "pt2")}

    assert set(found) == {row.name for row in of_manifests([ROOT / "manifests/graph_breaks.yaml"])}
    assert set(found) == rebuilt - {"Background_Matting", "demucs"}  # too large for two cores
    assert all(isinstance(counts["cpu"], int) for counts in found.values())


def test_rows_survive_json():
    assert [model_table.row_of(data) for data in json.loads(model_table.as_json(map(plain, known())))] == list(known())


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        (["--suite", "timm", "--name", "mixer_*"], {"timm/mixer_b16_224"}),
        (["--name", "torchbench/dc*"], {"torchbench/dcgan"}),
        (["--name", "resnet18"], {"torchbench/resnet18"}),
    ],
)
def test_models_are_chosen_by_suite_and_pattern(arguments, keys):
    assert set(rows(sweep(*arguments, "--json"))) == keys


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "tim"], "did you mean 'timm'"),
        (["--name", "dcgun"], "did you mean 'dcgan'"),
        (["--check", "--parameters"], "give --parameters or --check"),
        (["--check", "--device", "tpu"], "must be auto, cpu or cuda"),
        (["--check", "--dtype", "fp32"], "must be float32 or amp"),
        (["--check", "--mode", "sleeping"], "must be training or inference"),
        (["--name", "resnet50_quantized_qat", "--check", "--dtype", "amp"], "runs in float32 only"),
        (["manifests/toy.yaml", "--check"], "toys have nothing to build"),
    ],
)
def test_usage_errors(arguments, message):
    done = sweep(*arguments)

    assert done.returncode == ExitCode.USAGE
    assert message in done.stderr
    assert done.stdout == ""


def test_the_text_has_one_line_per_model_and_counts_them():
    done = sweep("--suite", "torchbench", "--name", "hf_*")

    assert done.stdout.splitlines()[-1] == "13 models"
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("torchbench/hf_GPT2 ")]
    assert line.split()[1:4] == ["library", "4/1", "124,439,808"]


def test_a_manifest_is_listed_at_its_own_sizes(few):
    same, other = "dcgan", "{name: lennard_jones, batch_size: 5, note: mine}"
    listed = rows(sweep(few(f"suites: {{torchbench: [{same}, {other}]}}\n"), "--json"))

    assert listed["torchbench/dcgan"]["inputs"] == "float32[32, 3, 64, 64]"
    lennard_jones = listed["torchbench/lennard_jones"]
    assert (lennard_jones["batch_size"], lennard_jones["inputs"], lennard_jones["note"]) == (5, None, "mine")
    assert lennard_jones["parameters"] == 865
    assert lennard_jones["sweep"] == "few"


def test_the_toys_are_listed_with_their_options():
    done = sweep("--suite", "toy", "--json")
    assert rows(done)["toy/crash"]["options"] == {"phase": "compile"}
    assert {key.partition("/")[2] for key in rows(done)} == set(TOYS)
    text = sweep("--name", "toy/cr*").stdout.splitlines()
    assert [line.split() for line in text] == [
        ["toy", "what", "it", "does", "options", "with", "their", "defaults"],
        ["toy/crash", "ends", "with", "a", "segmentation", "fault", "phase:", "compile"],
    ]


def test_other_options_make_another_model(few):
    listed = rows(sweep(few("suites: {torchbench: [{name: dlrm, options: {table_rows: 10}}]}\n"), "--json"))
    assert listed["torchbench/dlrm"]["parameters"] is None


def test_models_are_built_and_stepped_and_failures_are_named(few):
    """The whole of it once, with real models: describe, then check."""
    manifest = few(
        "suites:\n  torchbench: [{name: lennard_jones, batch_size: 5}, {name: dcgan, factory: 'json:dumps'}]\n"
        "  mine: [{name: m, factory: 'no_such_package:build'}]\n"
    )
    described = sweep(manifest, "--parameters", "--json")
    checked = sweep(manifest, "--check", "--device", "cpu", "--json", "--processes", "2")

    assert described.returncode == checked.returncode == ExitCode.SOME_FAILED
    assert rows(described)["torchbench/lennard_jones"]["inputs"] == "float32[5, 1]"
    for done in (described, checked):
        assert rows(done)["torchbench/dcgan"]["failed"]["status"] == "fail_eager"
        assert "BuildRequest is not JSON serializable" in rows(done)["torchbench/dcgan"]["failed"]["error"]
        assert rows(done)["mine/m"]["failed"]["status"] == "unsupported"
        assert "3/3" in done.stderr
    check = rows(checked)["torchbench/lennard_jones"]["check"]
    assert (check["mode"], check["device"]) == ("training", "cpu")
    for dtype in ("float32", "amp"):
        assert check[dtype]["status"] == "pass"
        assert check[dtype]["eager_ms"] > 0
        assert check[dtype]["peak_mib"] is None
        assert check[dtype]["finite"]


@pytest.fixture
def fake_survey(tmp_path):
    """A survey whose questions are Python: each is executed with ``say`` to answer with."""
    script = tmp_path / "survey.py"
    script.write_text(
        textwrap.dedent("""
        import json, os, sys, time
        count = 0
        def say(**line): print(json.dumps(line), flush=True)
        for question in sys.stdin:
            count += 1
            exec(json.loads(question)["do"])
        """)
    )

    def ask(questions, processes=1, deadline_s=20.0, fresh=False):
        with Survey(processes, deadline_s, fresh=fresh, command=[sys.executable, str(script)]) as survey:
            return dict(survey.ask([{"do": question} for question in questions]))

    return ask


def test_answers_come_with_the_number_of_their_question(fake_survey):
    assert fake_survey([f"say(n={number})" for number in range(6)], processes=2) == {number: {"n": number} for number in range(6)}


def test_a_process_serves_many_questions_or_one(fake_survey):
    assert [answer["count"] for answer in fake_survey(["say(count=count)"] * 3).values()] == [1, 2, 3]
    assert [answer["count"] for answer in fake_survey(["say(count=count)"] * 3, fresh=True).values()] == [1, 1, 1]


def test_a_process_that_dies_costs_one_answer_and_says_why(fake_survey):
    death = "say(phase='build'); print('my last words', file=sys.stderr, flush=True); os.abort()"
    answers = fake_survey(["say(ok=1)", death, "say(ok=1)"])

    assert answers[0] == answers[2] == {"ok": 1}
    assert answers[1]["status"] == "crash"
    assert "phase build (SIGABRT): my last words" in answers[1]["error"]


def test_a_process_that_hangs_is_ended_unless_it_waits_for_others(fake_survey):
    hang = "say(phase='amp'); time.sleep(60)"
    wait = "say(phase='wait'); time.sleep(3); say(phase='float32'); say(ok=1)"
    answers = fake_survey([hang, wait], deadline_s=1.5)

    assert answers[0] == {"status": "timeout", "error": "still in phase amp after 1.5 s"}
    assert answers[1] == {"ok": 1}


def test_no_process_outlives_its_survey(fake_survey, tmp_path):
    pids = [answer["pid"] for answer in fake_survey(["time.sleep(0.2); say(pid=os.getpid())"] * 2, processes=2).values()]
    assert len(set(pids)) == 2
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_names_of_the_extra_models_are_known_to_manifests():
    assert [name for name in EXTRA if catalogue.model_problem("torchbench", name)] == []


@pytest.mark.models
@pytest.mark.timeout(1200)  # two processes build every model in both modes, beside another worker's tests
def test_the_committed_table_is_what_a_survey_finds():
    """Counts and inputs move with the libraries: a difference here means that the workload has changed."""
    done = sweep(*SHIPPED, "--parameters", "--json", "--processes", "2", timeout_s=1200)
    found = rows(done)

    for row in known():
        now = found[row.key]
        if now.get("failed", {}).get("status") == "unsupported" and row.name == "timm_efficientdet":
            continue  # an optional package
        facts = ("parameters", "inputs", "eval_inputs", "source", "fidelity", "batch_size", "eval_batch_size")
        assert {name: now[name] for name in facts} == {name: plain(row)[name] for name in facts}, row.key
