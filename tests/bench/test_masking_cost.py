import json

import numpy as np
import pytest
import torch

from sparseticket.bench import masking_cost
from sparseticket.bench.masking_cost import FILLED, MASKED, PLAIN, PRUNE, share_of_step


@pytest.fixture(scope="module")
def arms(encoder):
    """The arms of a measurement, after it: what :func:`measure` makes inside is looked at here."""
    kept, make = {}, masking_cost.make_arms

    def keep(work, masks, settings, device):
        kept.update(arms=make(work, masks, settings, device), masks=masks)
        return kept["arms"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masking_cost, "make_arms", keep)
        kept["result"] = masking_cost.measure(str(encoder), pairs=6, device="cpu")
    return kept


def test_every_pair_has_both_steps_and_every_fifth_the_peers(arms):
    result = arms["result"]
    times = result["times_ms"]
    assert all(one > 0 for one in [*times[PLAIN], *times[MASKED]])
    for peer in (FILLED, PRUNE):
        assert [one is not None for one in times[peer]] == [True, False, False, False, False, True]
    assert {name: cost["n"] for name, cost in result["cost"].items()} == {MASKED: 6, FILLED: 2, PRUNE: 2}
    cost = result["cost"][MASKED]
    assert cost["low"] <= cost["share"] <= cost["high"]
    assert cost["share"] == pytest.approx(cost["difference_ms"] / result["step_ms"][PLAIN], rel=1e-6)


def test_each_arm_trained_under_its_masks_and_the_one_without_trained_all_weights(arms):
    masks = arms["masks"]
    assert arms["result"]["sparsity"] == pytest.approx(0.5, abs=0.02)
    for name, mask in masks.items():
        assert (arms["arms"][PLAIN].network.backbone()[name] != 0).all()
        for arm in (MASKED, FILLED):
            weight = arms["arms"][arm].network.backbone()[name]
            assert torch.equal(weight != 0, mask)
        pruned = arms["arms"][PRUNE].network
        layer = pruned.module.get_submodule((pruned.prefix + name).removesuffix(".weight"))
        assert torch.equal(layer.weight != 0, mask)


def test_pruning_and_checkpoints_are_put_beside_a_round(arms):
    events = arms["result"]["round"]
    whole = events["compared_with"]
    assert events["prune_s"] > 0 and events["checkpoint_save_s"] > 0 and events["checkpoint_load_s"] > 0
    assert whole["steps"] == 3 * 2105
    assert whole["prune_share"] == pytest.approx(events["prune_s"] / whole["seconds"])
    assert whole["seconds"] == pytest.approx(whole["steps"] * arms["result"]["step_ms"][PLAIN] / 1000)


def test_the_share_is_of_paired_differences_so_that_a_drifting_machine_does_not_show():
    plain = np.linspace(100, 300, 201)
    masked = plain + 4.0
    masked[::4] = np.nan
    cost = share_of_step(plain, masked, seed=0)
    assert cost["n"] == 150
    assert cost["difference_ms"] == pytest.approx(4.0)
    assert cost["share"] == pytest.approx(4 / 200, rel=0.02)
    assert 0 < cost["low"] <= cost["share"] <= cost["high"] < 0.03


def test_the_file_says_what_it_was_measured_on_and_names_no_path(encoder, arms, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(masking_cost, "measure", lambda model, *, pairs, device: arms["result"])
    monkeypatch.chdir(tmp_path)
    masking_cost.main(["--device", "cpu"])
    found = json.loads((tmp_path / "bench/results/masking_cost_cpu.json").read_text())
    assert found == json.loads(json.dumps(arms["result"]))
    assert found["machine"]["cpu"] and found["machine"]["versions"]["torch"]
    assert str(encoder.parent) not in json.dumps(found)
    assert "of a step, 95 % interval" in capsys.readouterr().out


def test_no_pairs_are_a_mistake(capsys):
    with pytest.raises(SystemExit) as ended:
        masking_cost.main(["--device", "cpu", "--pairs", "0"])
    assert ended.value.code == 2
    assert "--pairs 0 makes no sense" in capsys.readouterr().err
