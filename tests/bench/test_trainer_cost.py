import json
import shutil

import numpy as np
import pytest

from sparseticket.bench import trainer_cost
from sparseticket.bench.trainer_cost import GROUPED, OURS, PLAIN, as_fast
from sparseticket.ticket import Ticket


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("SST-2")
    words = ["the", "a", "of", "return", "is", "file", "object"]
    rows = [" ".join(words[(n * k) % 7] for k in range(1, 3 + n % 17)) + f"\t{n % 2}" for n in range(100)]
    for name in ("train", "dev"):
        (folder / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    return folder


@pytest.fixture(scope="module")
def looked_at(encoder, data, tmp_path_factory):
    """A measurement, what ran in it, and a copy of a round that it timed."""
    kept, theirs = {"turns": []}, trainer_cost.trainer_of
    copy = tmp_path_factory.mktemp("kept") / "run"

    def trainer(setting, arm, folder, *, seed):
        made = theirs(setting, arm, folder, seed=seed)
        kept["turns"].append((arm, made))
        if (folder / "pair-0" / "round-00" / "done").exists() and not copy.exists():
            shutil.copytree(folder / "pair-0", copy)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_cost, "trainer_of", trainer)
        kept["result"] = trainer_cost.measure(str(encoder), data, pairs=2, round_length="1ep")
    return kept | {"run": copy}


def test_every_pair_has_both_and_trainers_default_order_has_every_fourth(looked_at):
    result = looked_at["result"]
    assert all(one > 0 for arm in (OURS, GROUPED) for one in result["turns_s"][arm])
    assert [one is not None for one in result["turns_s"][PLAIN]] == [True, False]
    assert {arm: ratio["n"] for arm, ratio in result["times_as_fast"].items()} == {GROUPED: 2, PLAIN: 1}
    assert result["seconds_of_round_outside_training"] > 0


def test_both_train_as_many_steps_on_the_same_rows_with_the_same_optimizer(looked_at):
    result = looked_at["result"]
    assert (result["steps"], result["examples"]) == (4, 100)
    trained = [trainer for _, trainer in looked_at["turns"] if trainer.state.global_step > 3]  # not a warm-up
    assert len(trained) == 3 and {trainer.state.global_step for trainer in trained} == {4}
    for trainer in trained:
        optimizer = trainer.optimizer.optimizer
        assert type(optimizer).__name__ == "AdamW" and optimizer.defaults["fused"]
        assert trainer.args.max_grad_norm == result["training"]["clip"] == 1.0
        lengths = sorted(len(example["input_ids"]) for example in trainer.train_dataset)
        assert lengths[0] == 4 and lengths[-1] == 20 and len(lengths) == 100
    assert result["padded_tokens_of_an_epoch"][OURS] <= result["padded_tokens_of_an_epoch"][PLAIN]


def test_our_turn_is_a_whole_round_that_prunes_and_leaves_its_network_and_the_next_ticket(looked_at):
    run = looked_at["run"]
    assert (run / "round-00" / "model" / "model.safetensors").is_file() and (run / "round-00" / "done").is_file()
    sparsities = [Ticket.load(run / f"round-{k:02d}" / "ticket.ticket").sparsity for k in range(2)]
    assert sparsities == pytest.approx([0.5, 0.6], abs=1e-3)


def test_the_ratio_is_taken_within_pairs_so_that_a_drifting_machine_does_not_show():
    ours = np.linspace(10, 30, 9)
    theirs = ours * 1.1
    theirs[1::2] = np.nan
    ratio = as_fast(theirs, ours)
    assert ratio["n"] == 5 and ratio["median"] == ratio["low"] == ratio["high"] == pytest.approx(1.1)


def test_the_file_says_what_it_was_measured_on_and_names_no_path(
    encoder, data, looked_at, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(trainer_cost, "measure", lambda model, data, **asked: looked_at["result"])
    monkeypatch.chdir(tmp_path)
    trainer_cost.main(["--data", str(data)])
    found = json.loads((tmp_path / "bench/results/trainer_cost_cpu.json").read_text())
    assert found == json.loads(json.dumps(looked_at["result"])) and found["machine"]["cpu"]
    assert str(encoder.parent) not in json.dumps(found) and str(data.parent) not in json.dumps(found)
    assert "x as fast as trainer, grouped by length, 95 % interval" in capsys.readouterr().out


def test_no_pairs_are_a_mistake(data, capsys):
    with pytest.raises(SystemExit) as ended:
        trainer_cost.main(["--data", str(data), "--pairs", "0"])
    assert ended.value.code == 2 and "--pairs 0 makes no sense" in capsys.readouterr().err
