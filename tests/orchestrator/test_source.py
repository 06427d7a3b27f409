"""YAML files as data with places: scalars of YAML 1.2, problems instead of surprises, includes."""

from __future__ import annotations

import json
import math
import string

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import source
from orchestrator.source import Place


def parse(text, file="f.yaml"):
    problems = []
    document = source.parse(text, file, problems)
    return document, [str(problem) for problem in problems]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-3", 0.001),
        ("1E+3", 1000.0),
        (".5", 0.5),
        ("-2.", -2.0),
        ("-.inf", -math.inf),
        ("012", 12),
        ("0o17", 15),
        ("0x1F", 31),
        ("-0", 0),
        ("3:30", "3:30"),
        ("1_000", "1_000"),
        ("0b1", "0b1"),
        ("2001-12-14", "2001-12-14"),
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("'12'", "12"),
        ('"true"', "true"),
        ("!!str 12", "12"),
        ("!!float 1", 1.0),
        ("! 12", "12"),
        ("=", "="),
    ],
)
def test_scalars_follow_yaml_1_2(written, value):
    document, problems = parse(f"key: {written}\n")

    assert problems == []
    assert document.data == {"key": value}
    assert type(document.data["key"]) is type(value)


def test_not_a_number_is_a_float():
    assert math.isnan(parse("key: .nan")[0].data["key"])


def test_an_integer_beyond_reason_does_not_stop_the_reader():
    assert parse("9" * 5000)[0].data == math.inf


def test_every_key_and_value_has_its_place():
    document, _ = parse("a:\n  - b: [1, {c: two}]\n  -  3\nd: x\n")

    assert document.values == {
        (): Place("f.yaml", 1, 1),
        ("a",): Place("f.yaml", 2, 3),
        ("a", 0): Place("f.yaml", 2, 5),
        ("a", 0, "b"): Place("f.yaml", 2, 8),
        ("a", 0, "b", 0): Place("f.yaml", 2, 9),
        ("a", 0, "b", 1): Place("f.yaml", 2, 12),
        ("a", 0, "b", 1, "c"): Place("f.yaml", 2, 16),
        ("a", 1): Place("f.yaml", 3, 6),
        ("d",): Place("f.yaml", 4, 4),
    }
    assert document.keys == {
        ("a",): Place("f.yaml", 1, 1),
        ("a", 0, "b"): Place("f.yaml", 2, 5),
        ("a", 0, "b", 1, "c"): Place("f.yaml", 2, 13),
        ("d",): Place("f.yaml", 4, 1),
    }


def test_columns_count_characters_and_not_bytes():
    assert parse("äöü: [é, x]")[0].values[("äöü", 1)] == Place("f.yaml", 1, 10)


def test_a_problem_names_as_much_of_its_trail_as_exists():
    document, _ = parse("a: {b: 1}")

    assert str(document.problem(("a", "c", 2), "lacks")) == "f.yaml:1:4: a: lacks"
    assert str(document.key_problem(("a", "b"), "odd")) == "f.yaml:1:5: a.b: odd"


def test_aliases_expand_with_the_places_of_their_anchor():
    document, problems = parse("a: &x {b: 1}\nc: *x\n")

    assert problems == []
    assert document.data == {"a": {"b": 1}, "c": {"b": 1}}
    assert document.values[("c", "b")] == document.values[("a", "b")] == Place("f.yaml", 1, 11)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3\n", ["f.yaml:3:1: a: duplicate key, first given in line 1"]),
        ("a: {b: 1, 'b': 2}\n", ["f.yaml:1:11: a.b: duplicate key, first given in line 1"]),
        ("4: x\n", ["f.yaml:1:1: 4: a key must be a string: quote '4'"]),
        ("a: {true: x}\n", ["f.yaml:1:5: a.true: a key must be a string: quote 'true'"]),
        ("? [a]\n: x\n", ["f.yaml:1:3: a key must be a string"]),
        ("a: &x {b: 1}\nc: {<<: *x}\n", ["f.yaml:2:5: c.<<: merge keys left YAML with version 1.2; use 'defaults'"]),
        ("a: !!set {b}\n", ["f.yaml:1:4: the tag !!set is not supported"]),
        ("a: !!python/object:os.system x\n", ["f.yaml:1:4: the tag !!python/object:os.system is not supported"]),
        ("a: !mine 1\n", ["f.yaml:1:4: the tag !mine is not supported"]),
        ("a: !!int x\n", ["f.yaml:1:4: 'x' is no !!int"]),
        ("a: 1\n---\nb: 2\n", ["f.yaml:2:1: a second document; a manifest is one document"]),
        ("a: *x\n", ["f.yaml:1:4: no complete anchor '&x' before this alias"]),
        ("a: &x [*x]\n", ["f.yaml:1:8: no complete anchor '&x' before this alias"]),
        ("a: \x07\n", ["f.yaml:1:4: the character '\\x07' is not allowed in YAML"]),
        ("a: b: c\n", ["f.yaml:1:5: mapping values are not allowed in this context"]),
        ("[" * 70, ["f.yaml:1:66: nested deeper than 64 levels"]),
        ("{a: " * 70, ["f.yaml:1:258: nested deeper than 64 levels"]),
    ],
)
def test_what_is_wrong_is_said_at_its_place(text, expected):
    assert parse(text)[1] == expected


@pytest.mark.parametrize("text", ["a:\n\t- b\n", "a: 1\n\tb: 2\n"])
def test_tabs_get_a_hint(text):
    (problem,) = parse(text)[1]

    assert problem.startswith("f.yaml:2:")
    assert problem.endswith("; YAML indents with spaces, not tabs")


def test_all_problems_of_a_file_are_found_and_the_rest_is_read():
    document, problems = parse("a: 1\na: 2\n3: x\nb: !x 1\nc: ok\n")

    assert document.data == {"a": 1, "b": "1", "c": "ok"}
    assert [problem.split(":")[1] for problem in sorted(problems)] == ["2", "3", "4"]


def test_aliases_cannot_blow_up():
    wide = "\n".join(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9) if level else 1}]" for level in range(20))
    deep = "\n".join(f"a{level}: &a{level} [{f'*a{level - 1}' if level else 1}]" for level in range(3000))
    rather_deep = "\n".join(deep.splitlines()[: source.MAX_DEPTH + 10])

    for text in (wide, deep, rather_deep):
        document, problems = parse(text)
        assert len(problems) == 1
        assert problems[0].endswith("more than 100,000 values or 64 levels after expanding aliases")
        assert len(document.values) <= source.MAX_VALUES


def test_a_deeply_nested_file_does_not_end_the_process():
    assert len(parse("[" * 200_000)[1]) == 1


KEYS = st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=8)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(allow_nan=False),
    KEYS,
    st.text(alphabet=string.digits + "eE+-._:xo~ \n#'\"", max_size=8),
    st.sampled_from(
        ["no", "Yes", "on", "null", "~", "", "<<", "=", "1e-3", "012", "0o7", "3:30", "2001-01-01", "true", ".inf", "- a", "a: b"]
    ),
)
DATA = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=20)


def printable(data):
    """YAML has no way to write these characters plainly, which is how JSON writes them."""
    return source.Reader.NON_PRINTABLE.search(json.dumps(data, ensure_ascii=False)) is None


def same(left, right):
    """Equal, and of equal types."""
    return left == right and repr(left) == repr(right)


@given(DATA)
def test_what_is_dumped_is_read_back(data):
    document, problems = parse(source.dump(data))

    assert problems == []
    assert same(document.data, data)


@given(DATA)
def test_readers_of_yaml_1_1_understand_what_is_dumped_likewise(data):
    assert same(yaml.safe_load(source.dump(data)), data)


@given(DATA.filter(printable))
def test_json_is_yaml(data):
    if "inf" in (text := json.dumps(data, ensure_ascii=False)).lower() or "\x85" in text or "\u2028" in text or "\u2029" in text:
        return  # no JSON, or line breaks that YAML 1.1's scanner folds
    document, problems = parse(text)

    assert problems == []
    assert same(document.data, data)


@given(st.text(alphabet="ab:,-[]{}&*!|>'\"# \n\t?%@1.", max_size=60))
def test_no_text_makes_the_reader_fail(text):
    document, problems = parse(text)

    assert document.sound or problems
    for trail in document.values:
        assert document.place(trail).line <= text.count("\n") + 2


def test_includes_are_read_relative_to_their_file(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "top.yaml").write_text("include: [sub/a.yaml]\n")
    (tmp_path / "sub/a.yaml").write_text("include:\n  - b.yaml\n")
    (tmp_path / "sub/b.yaml").write_text("x: 1\n")

    document, problems = source.read(tmp_path / "top.yaml")

    assert problems == []
    (a,) = document.includes
    (b,) = a.includes
    assert (a.file, b.file, b.data) == (str(tmp_path / "sub/a.yaml"), str(tmp_path / "sub/b.yaml"), {"x": 1})


def test_problems_of_included_files_name_them(tmp_path):
    top = tmp_path / "top.yaml"
    top.write_text("name: x\ninclude: [missing.yaml, cycle.yaml, broken.yaml, '.', latin.yaml]\n")
    (tmp_path / "cycle.yaml").write_text("include: [top.yaml]\n")
    (tmp_path / "broken.yaml").write_text("a: [\n")
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: \xe9\n")

    _, problems = source.read(top)

    assert [str(problem).replace(f"{tmp_path}/", "") for problem in problems] == [
        "top.yaml:2:11: include[0]: no such file: missing.yaml",
        "cycle.yaml:1:11: include[0]: top.yaml includes this file in turn",
        "broken.yaml:1:5: did not find expected node content while parsing a flow node",
        f"top.yaml:2:50: include[3]: cannot read {tmp_path}: Is a directory",
        "latin.yaml:2:4: not UTF-8",
    ]


def test_a_file_included_along_two_ways_is_read_once(tmp_path):
    (tmp_path / "top.yaml").write_text("include: [a.yaml, b.yaml]\n")
    (tmp_path / "a.yaml").write_text("include: [c.yaml]\n")
    (tmp_path / "b.yaml").write_text("include: [./c.yaml]\n")
    (tmp_path / "c.yaml").write_text("x: 1\nx: 2\n")

    document, problems = source.read(tmp_path / "top.yaml")

    assert len(problems) == 1
    assert document.includes[0].includes[0] is document.includes[1].includes[0]


def test_a_missing_manifest_is_a_problem():
    _, problems = source.read("nowhere/at-all.yaml")

    assert [str(problem) for problem in problems] == ["nowhere/at-all.yaml:1:1: no such file: nowhere/at-all.yaml"]


def test_a_byte_order_mark_is_no_content(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n")

    document, problems = source.read(tmp_path / "a.yaml")

    assert problems == []
    assert document.keys[("a",)] == Place(str(tmp_path / "a.yaml"), 1, 1)
