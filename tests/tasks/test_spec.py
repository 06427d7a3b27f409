"""The wire vocabulary: what was encoded comes back, and what does not fit is named."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.spec import (
    Attempt,
    FailureClass,
    Measurement,
    ModelSpec,
    Outcome,
    Phase,
    PrecisionSpec,
    ResourceSpec,
    Samples,
    SpecError,
    Status,
    TaskSpec,
    decode,
    encode,
    slug,
)

finite = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), finite, st.text(max_size=10))
models = st.builds(
    ModelSpec,
    st.text(max_size=5),
    st.text(max_size=5),
    st.none() | st.integers(1, 9),
    options=st.dictionaries(st.text(max_size=4), scalars, max_size=3),
)
tasks = st.builds(
    TaskSpec,
    st.text(max_size=9),
    models,
    st.just("training"),
    st.just("inductor"),
    st.builds(PrecisionSpec, st.text(max_size=4), st.booleans()),
    resources=st.builds(ResourceSpec, num_gpus=finite),
)
measurements = st.builds(
    Measurement,
    speedup=st.none() | finite,
    pairs=st.none() | st.integers(),
    graph_break_reasons=st.lists(st.text(max_size=5), max_size=3).map(tuple),
    machine=st.dictionaries(st.text(max_size=4), scalars, max_size=3),
)
samples = st.lists(st.tuples(st.integers(0, 10**12), st.none() | finite, st.booleans()), max_size=5).map(
    lambda rows: Samples(host_ns=tuple(r[0] for r in rows), device_ms=tuple(r[1] for r in rows), valid=tuple(r[2] for r in rows))
)
outcomes = st.builds(
    Outcome,
    st.text(max_size=5),
    st.integers(1, 9),
    st.sampled_from(Status),
    st.sampled_from(Phase),
    st.none() | st.sampled_from(FailureClass),
    measurement=measurements,
    samples=samples,
)


@given(st.one_of(tasks, outcomes))
def test_what_is_encoded_comes_back_through_json(value):
    assert decode(type(value), json.loads(json.dumps(encode(value)))) == value


def test_an_int_may_stand_for_a_float_but_not_the_reverse():
    assert decode(PrecisionSpec, {"dtype": "amp"}) == PrecisionSpec("amp")
    assert isinstance(decode(ResourceSpec, {"num_cpus": 2}).num_cpus, float)
    assert decode(Samples, {"device_ms": [1, 2.5, None]}).device_ms == (1.0, 2.5, None)
    with pytest.raises(SpecError, match=r"Attempt\.number: expected int, got 1\.5"):
        decode(Attempt, {"run_id": "r", "number": 1.5})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"run_id": "r"}, "missing 1 required positional argument: 'number'"),
        ({"run_id": "r", "number": 1, "nuber": 2}, "Attempt: unknown field 'nuber'"),
        ({"run_id": "r", "number": True}, "Attempt.number: expected int, got True"),
        ({"run_id": "r", "number": 1, "gpu_ids": ["0", 1]}, "Attempt.gpu_ids: expected str, got 1"),
        ([], "Attempt: expected Attempt, got []"),
    ],
)
def test_what_does_not_fit_is_named(data, message):
    with pytest.raises(SpecError) as raised:
        decode(Attempt, data)
    assert message in str(raised.value)


def test_an_unknown_status_is_refused():
    data = encode(Outcome("t", 1, Status.PASS, Phase.WRITE)) | {"status": "fine"}
    with pytest.raises(SpecError, match=r"Outcome\.status: expected Status, got 'fine'"):
        decode(Outcome, data)


@given(st.lists(st.text(max_size=120), min_size=2, max_size=20, unique=True))
def test_slugs_are_file_names_and_differ(identifiers):
    slugs = [slug(identifier) for identifier in identifiers]
    assert len(set(slugs)) == len(slugs)
    assert all(0 < len(name) <= 91 and "/" not in name and name.isascii() and not name.startswith(".") for name in slugs)
