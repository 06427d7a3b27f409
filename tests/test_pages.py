"""Pages whose numbers come from a store: renewed in place, and the one of the reference sweep is what its store says."""

from __future__ import annotations

import duckdb
import pytest

from tests import figure, pages

PAGE = """# A page

```sql
SELECT 1 + 1 AS two, NULL AS nothing, 'a|b' AS text
```

| old |
|---|
| 3 |
| 4 |

Some text | with a bar.

| a table | of its own |
|---|---|

```sql
SELECT 3
```

```console
$ echo "$((40 + 2))"
41
```

The end.
"""


def test_answers_are_renewed_and_nothing_else_is_touched():
    now = pages.renewed(PAGE)

    assert "| two | nothing | text |\n| --- | --- | --- |\n| 2 |  | a\\|b |\n\nSome text" in now
    assert '```console\n$ echo "$((40 + 2))"\n42\n```\n' in now
    untouched = now.replace("| two | nothing | text |\n| --- | --- | --- |\n| 2 |  | a\\|b |\n", "| old |\n|---|\n| 3 |\n| 4 |\n")
    assert untouched.replace("42\n", "41\n") == PAGE
    assert pages.renewed(now) == now


@pytest.mark.parametrize(
    ("page", "error"),
    [
        ("```sql\nSELECT nothing\n```\n", duckdb.Error),
        ("```console\n$ false\n```\n", RuntimeError),
    ],
)
def test_a_query_or_a_command_that_fails_is_an_error(page, error):
    with pytest.raises(error):
        pages.renewed(page)


def test_a_page_is_written_or_only_checked(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(PAGE)

    assert pages.main(["--check", str(page)]) == 1
    assert page.read_text() == PAGE
    assert pages.main([str(page)]) == 0
    assert page.read_text() == pages.renewed(PAGE)
    assert pages.main(["--check", str(page)]) == 0
    assert [line.rpartition(": ")[2] for line in capsys.readouterr().out.splitlines()] == ["stale", "renewed"]


def test_the_page_of_the_reference_sweep_says_what_its_store_says():
    text = (pages.ROOT / "docs/reference-sweep.md").read_text(encoding="utf-8")

    assert pages.renewed(text) == text, "make pages"


def test_the_readme_says_what_the_store_says():
    text = (pages.ROOT / "README.md").read_text(encoding="utf-8")

    assert pages.renewed(text) == text, "make pages"


def test_the_figure_of_the_reference_sweep_shows_its_store(tmp_path):
    figure.save(tmp_path / "figure.svg")

    assert (tmp_path / "figure.svg").read_text() == (pages.ROOT / "docs/reference-sweep.svg").read_text(), "make pages"
