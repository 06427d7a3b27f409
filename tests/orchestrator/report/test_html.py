"""The HTML report: hostile text stays text, nothing is fetched, and a browser draws it on a phone and in the dark."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from orchestrator.report.build import build
from orchestrator.report.figures import figures_of
from orchestrator.report.html import BAR_HIGH, bar, render_html
from orchestrator.report.present import as_text, write_file
from orchestrator.report.rows import Planned, Row, Run
from orchestrator.report.synthetic import failed, synthetic_run

EVIL = "</script><script>document.title='owned'</script>\"'><img src=x onerror=alert(1)>{{ 7 * 7 }}{% raw %}\x1b[31m%{x}|`*_"
CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
SCRIPTS = 3  # the figures' data, plotly, our own


class Elements(HTMLParser):
    """Every element that a browser would make, with its attributes, and all text outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.cdata_elem is None:
            self.text += data


def hostile_run() -> Run:
    """A run with ``EVIL`` in every text that a task, a machine or a user can choose."""
    run = synthetic_run({(EVIL + "suite", f"{EVIL}model{place}", dtype): 0.3 for place in range(3) for dtype in ("amp", "float32")})
    texts = [
        item.name for item in dataclasses.fields(Row) if "str" in item.type and "Mapping" not in item.type and "tuple" not in item.type
    ]
    kept = {"status", "dtype", "suite", "model"}

    def spoil(row: Row, place: int) -> Row:
        spoilt = replace(row, **{name: f"{EVIL}{name}" for name in texts if name not in kept})
        spoilt = replace(spoilt, graph_break_reasons=(EVIL,), versions={EVIL: EVIL}, machine={EVIL: EVIL}, task_id=f"{EVIL}{place}")
        return replace(failed(spoilt), error=EVIL, log_tail=EVIL, phase=EVIL, failure_class=EVIL, log=EVIL) if place == 0 else spoilt

    rows = tuple(spoil(row, place) for place, row in enumerate(run.rows))
    planned = tuple(Planned(row.task_id, row.suite, row.model, row.dtype, row.mode, row.backend) for row in rows)
    absent = replace(planned[0], task_id=f"{EVIL}absent")
    return replace(
        run, run_id=EVIL, rows=rows, planned=(*planned, absent), manifest=EVIL, manifest_digest=EVIL, facts={EVIL: EVIL}, remarks=(EVIL,)
    )


@pytest.fixture(scope="module")
def hostile_page() -> str:
    return render_html(build(hostile_run()))


def test_hostile_text_makes_no_element(hostile_page):
    page = Elements(hostile_page)
    tags = [tag for tag, _ in page.found]
    assert tags.count("script") == SCRIPTS
    assert "img" not in tags
    assert not [name for _, attributes in page.found for name in attributes if name.startswith("on")]
    assert "{{ 7 * 7 }}" in page.text
    assert page.text.count("<img src=x onerror=alert(1)>") > 20, "the text is shown as it is"


def test_nothing_points_outside(hostile_page):
    page = Elements(hostile_page)
    for tag, attributes in page.found:
        assert not {"src", "srcset", "data", "action", "background"} & set(attributes), (tag, attributes)
        assert attributes.get("href", "#").startswith("#")
        assert tag not in {"link", "iframe", "object", "embed", "base"}
    policy = next(attributes["content"] for tag, attributes in page.found if attributes.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


@pytest.mark.parametrize("form", ["text", "markdown", "json"])
def test_hostile_text_in_the_other_forms(form):
    shown = as_text(build(hostile_run()), form)
    if form == "markdown":
        assert "<script" not in shown
        assert "<img" not in shown
    if form == "text":
        assert "[31m%" in shown, "no escape of ours is eaten by rich's markup"


@pytest.mark.parametrize("name", ["no rows", "one dtype", "nothing passed", "no times"])
def test_a_run_without_answers_still_has_a_page(name):
    run = synthetic_run({("toy", "m", "amp"): 0.1, ("toy", "m", "float32"): 0.1})
    run = {
        "no rows": replace(run, rows=()),
        "one dtype": replace(run, rows=run.rows[:1], planned=run.planned[:1]),
        "nothing passed": replace(run, rows=tuple(map(failed, run.rows))),
        "no times": replace(run, rows=tuple(replace(row, eager_ms=None, speedup_low=None, compile_s=None) for row in run.rows)),
    }[name]
    assert Elements(render_html(build(run))).text.count("not defined") >= (0 if name == "no times" else 1)


def test_the_same_answers_give_the_same_bytes():
    assert render_html(build(synthetic_run())) == render_html(build(synthetic_run()))


def test_plotly_gets_no_tag_from_a_run():
    answers = build(hostile_run())
    figures = figures_of(answers.configurations[0], answers.rows)
    assert set(figures) == {"distribution", "ranking", "times"}
    for figure in figures.values():
        for trace in figure.to_plotly_json()["data"]:
            shown = [trace.get("name"), *trace.get("text", ()), *(place for place in trace["y"] if isinstance(place, str))]
            assert not [text for text in shown if text and ("<" in text or ">" in text)]


def test_bars_stay_inside():
    row = synthetic_run({("toy", "m", "amp"): 0.0}).rows[0]
    middle = bar(replace(row, speedup=1.0, speedup_low=1.0, speedup_high=1.0))
    assert middle.point == pytest.approx(33.3)
    far = bar(replace(row, speedup=99.0, speedup_low=0.0, speedup_high=99.0 * BAR_HIGH))
    assert (far.left, far.width, far.point) == (0.0, 100.0, 100.0)
    assert bar(replace(row, speedup_low=None)) is None


# In a browser -----------------------------------------------------------------------------------------------------------------------


def browse(page: str, folder, *options: str) -> str:
    """The document as it is after its scripts have run."""
    file = folder / "report.html"
    write_file(file, page)
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile", "--virtual-time-budget=6000"]
    found = subprocess.run([*command, *options, "--dump-dom", f"file://{file}"], capture_output=True, text=True, timeout=120, check=True)
    return found.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium binary is installed")
def test_a_browser_draws_every_figure_and_runs_nothing_hostile(hostile_page, tmp_path):
    document = browse(hostile_page, tmp_path)
    assert "<title>owned</title>" not in document
    assert "<title>Sweep" in document
    assert document.count('class="plot-container') == 3
    assert "6 of 6 shown" in document


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium binary is installed")
def test_nothing_is_wider_than_a_phone(tmp_path):
    page = render_html(build(synthetic_run(failing=(3, 50))))
    inner = tmp_path / "inner.html"
    write_file(inner, page)
    frame = f"""<!doctype html><iframe src="file://{inner}" style="border:0;width:390px;height:800px"></iframe><script>
      onload = () => setTimeout(() => {{
        const root = document.querySelector("iframe").contentDocument.documentElement;
        document.title = `${{root.scrollWidth}} of ${{root.clientWidth}}, ${{root.querySelectorAll(".plot-container").length}} drawings`;
      }}, 2000);</script>"""
    document = browse(frame, tmp_path, "--disable-web-security", "--allow-file-access-from-files", "--hide-scrollbars")
    assert "<title>390 of 390, 3 drawings</title>" in document
