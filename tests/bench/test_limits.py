import pytest

from sparseticket.bench.limits import Limit
from sparseticket.errors import UserError


def record(name, *, against=None, provider="onnxruntime-cpu", cell="batch 1", **values):
    known = dict.fromkeys(("p50_ms", "p90_ms", "p95_ms", "p99_ms", "load_ms"), 10.0)
    known |= {"memory_bytes": 50e6, "bytes": 100e6}
    return {"name": name, "provider": provider, "cell": cell, "against": against, **known, **values}


DENSE = "dense (onnxruntime-cpu)"


def failures(text, *records):
    return Limit.parse(text).failures(records)


@pytest.mark.parametrize(
    ("text", "values", "fails"),
    [
        ("p50 > 1.1x", {"p50_ms": 11.0}, False),
        ("p50 > 1.1x", {"p50_ms": 11.1}, True),
        ("p50>=1.1x", {"p50_ms": 11.0}, True),
        (" p90 > 1.1 x ", {"p90_ms": 11.1}, True),
        ("p95 > 20ms", {"p95_ms": 20.5}, True),
        ("p99 > 20 ms", {"p99_ms": 19.5}, False),
        ("load > 2x", {"load_ms": 30.0}, True),
        ("size > 0.5x", {"bytes": 50e6}, False),
        ("size >= 0.5x", {"bytes": 50e6}, True),
        ("memory > 60MB", {"memory_bytes": 61e6}, True),
        ("memory < 60MB", {"memory_bytes": 61e6}, False),
        ("p50 <= 1x", {"p50_ms": 10.0}, True),
    ],
)
def test_a_rule_is_true_or_not_of_what_was_measured(text, values, fails):
    assert bool(failures(text, record("dense"), record("ticket", against=DENSE, **values))) is fails


def test_the_baseline_is_the_one_of_the_same_cell():
    records = [
        record("dense", p50_ms=10.0),
        record("ticket", against=DENSE, p50_ms=12.0),
        record("dense", cell="batch 8", p50_ms=100.0),
        record("ticket", cell="batch 8", against=DENSE, p50_ms=101.0),
    ]
    assert failures("p50 > 1.1x", *records) == [
        "ticket (onnxruntime-cpu), batch 1: p50 is 12 ms, 1.2x the 10 ms of dense (--fail-if 'p50 > 1.1x')"
    ]


def test_a_baseline_is_asked_only_where_it_is_alone():
    assert failures("p50 > 5ms", record("dense"), record("ticket", against=DENSE, p50_ms=1.0)) == []
    assert len(failures("p50 > 5ms", record("dense"))) == 1


def test_memory_that_the_system_could_not_tell_is_a_failure_on_the_cpu_and_not_asked_of_a_gpu():
    unknown = record("ticket", against=DENSE, memory_bytes=None)
    assert "could not be measured" in failures("memory > 2x", record("dense"), unknown)[0]
    on_gpu = record("ticket", against="dense (pytorch-cuda)", provider="pytorch-cuda", memory_bytes=None)
    assert failures("memory > 2x", record("dense", provider="pytorch-cuda", memory_bytes=None), on_gpu) == []


@pytest.mark.parametrize(
    "text",
    ["", "p50", "p50 > fast", "p42 > 1x", "p50 > 1", "p50 == 1x", "p50 > -1x", "p50 > 1.1x, p99 > 2x", "p50 > 1e3x"],
)
def test_what_is_no_rule_is_refused_with_the_grammar(text):
    with pytest.raises(UserError, match=r"a comparison .*as in") as error:
        Limit.parse(text)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(("text", "words"), [("p50 > 10MB", "in ms"), ("size > 10ms", "in MB")])
def test_a_unit_that_does_not_fit_the_metric_is_refused(text, words):
    with pytest.raises(UserError, match=words):
        Limit.parse(text)
