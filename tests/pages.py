"""Pages whose numbers come from a results store: the query, or the command, stands in the page, and what it gives right below it.

``python -m tests.pages docs/reference-sweep.md`` renews a page in place; with ``--check`` it says what is stale instead. A block ```sql is
run by DuckDB, and the table that follows it is its answer; a block ```console begins with ``$ `` and a command, and goes on with what
that prints. Both are run in the project's root. A query without a table below it is run, too, and its answer is not kept.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import duckdb
import pyarrow as pa

ROOT = Path(__file__).parents[1]
_SQL = re.compile(r"(?P<query>```sql\n(?P<code>.*?)```\n)(?P<table>\n(?:\|[^\n]*\n)+)?", re.DOTALL)
_CONSOLE = re.compile(r"```console\n\$ (?P<command>.*?)\n.*?```\n", re.DOTALL)


def renewed(text: str) -> str:
    """``text`` with every answer as it is now.

    Raises:
        duckdb.Error: a query does not run.
        RuntimeError: a command prints nothing.
    """
    text = _SQL.sub(lambda found: found["query"] + _below(found["code"], kept=found["table"] is not None), text)
    return _CONSOLE.sub(lambda found: f"```console\n$ {found['command']}\n{printed(found['command'])}```\n", text)


def _below(query: str, *, kept: bool) -> str:
    answer = table(query)
    return f"\n{answer}" if kept else ""


def table(query: str) -> str:
    """The answer in Markdown. Numbers are to be formatted by the query."""
    answer = answered(query)
    rows = [answer.column_names, ["---"] * answer.num_columns, *zip(*(column.to_pylist() for column in answer.columns), strict=True)]
    return "".join("| " + " | ".join(map(_cell, row)) + " |\n" for row in rows)


def answered(query: str) -> pa.Table:
    with duckdb.connect() as connection:
        connection.sql(f"SET file_search_path = '{ROOT}'")
        return connection.sql(query).to_arrow_table()


def printed(command: str) -> str:
    """What ``command`` writes to stdout; ``sweep`` is the one of this interpreter."""
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=os.environ | {"PATH": paths, "COLUMNS": "160"}, capture_output=True, text=True, timeout=600
    )
    if not done.stdout:
        raise RuntimeError(f"{command}: printed nothing\n{done.stderr}")
    return done.stdout


def _cell(value: object) -> str:
    return "" if value is None else str(value).replace("|", "\\|")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is stale")
    chosen = parser.parse_args(arguments)
    stale = 0
    for page in chosen.pages:
        text = page.read_text(encoding="utf-8")
        now = renewed(text)
        if now != text:
            stale += 1
            print(f"{page}: stale" if chosen.check else f"{page}: renewed")
            if not chosen.check:
                page.write_text(now, encoding="utf-8")
    return int(chosen.check and stale > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
