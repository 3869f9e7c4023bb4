import os

import pytest

from sparseticket.errors import UserError
from sparseticket.export.source import resolve


def test_a_run_means_its_last_finished_round(run):
    found = resolve(run)
    assert found.model == run / "round-01" / "model"
    assert found.home == run
    assert found.label == "tiny-sst2/round-01/model"


def test_a_round_and_its_ticket_mean_that_rounds_model(run):
    for source in (run / "round-00", run / "round-00" / "ticket.ticket"):
        assert resolve(source).model == run / "round-00" / "model"
        assert resolve(source).home == run / "round-00"


def test_round_10_comes_after_round_9(run):
    (run / "round-01").rename(run / "round-09")
    (run / "round-00").rename(run / "round-10")
    assert resolve(run).model.parent.name == "round-10"


def test_a_model_folder_means_itself_and_is_named_without_its_path(classifier):
    found = resolve(classifier)
    assert (found.model, found.home, found.label) == (classifier, classifier, "classifier")


def test_nothing_means_the_newest_finished_run(run, tmp_path):
    older = tmp_path / "runs" / "older"
    (older / "round-00").mkdir(parents=True)
    (older / "summary.json").touch()
    os.utime(older / "summary.json", (0, 0))
    unfinished = tmp_path / "runs" / "unfinished"
    (unfinished / "round-00").mkdir(parents=True)
    assert resolve(None, runs=tmp_path / "runs").home == run


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda run: run / "nowhere", "there is no"),
        (lambda run: run.parent, "no model that can be read"),
        (lambda run: run / "summary.json", "not a ticket"),
        (lambda run: run / "round-02", "not finished"),
    ],
)
def test_anything_else_is_an_error_that_says_what_to_do(run, make, words):
    with pytest.raises(UserError, match=words) as error:
        resolve(make(run))
    assert "SOURCE" in str(error.value) or "find` again" in str(error.value)


def test_a_ticket_without_weights_is_an_error(run, tmp_path):
    alone = tmp_path / "alone.ticket"
    alone.write_bytes(b"")
    with pytest.raises(UserError, match="no trained weights"):
        resolve(alone)


def test_a_run_with_no_finished_round_is_an_error(run):
    for done in run.glob("round-*/done"):
        done.unlink()
    with pytest.raises(UserError, match=r"no round .* is finished"):
        resolve(run)


def test_no_run_at_all_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no finished run"):
        resolve(None, runs=tmp_path / "runs")
