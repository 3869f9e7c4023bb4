import json
import struct

import pytest
import safetensors.torch
import torch
from torch import nn

from sparseticket.errors import UserError
from sparseticket.theta import tensor_hash, tensor_hashes
from sparseticket.ticket import Ticket

WEIGHTS = {"encoder.a.weight": torch.arange(12.0).reshape(3, 4), "encoder.b.weight": torch.ones(5, 2)}


def ticket(**changes):
    masks = {name: weight > 3 if name.endswith("a.weight") else weight > 0 for name, weight in WEIGHTS.items()}
    fields = {"masks": masks, "model": "tiny", "theta": tensor_hashes(WEIGHTS), "scheduled_sparsity": 0.2, "round": 2}
    return Ticket(**fields | changes)


def rewrite(path, change):
    """Change a ticket's JSON header bytes by hand, keeping the file well formed."""
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = change(json.loads(content[8 : 8 + size]))
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


def test_a_ticket_comes_back_as_it_was_written(tmp_path):
    written = ticket(metrics={"rounds": [{"round": 0, "sparsity": 0.0, "value": 0.9}]}, seeds={"seed": 3})
    written.save(tmp_path / "a.ticket")
    read = Ticket.load(tmp_path / "a.ticket")
    assert read.record() == written.record() and read.identity == written.identity
    assert all(torch.equal(read.masks[name], mask) for name, mask in written.masks.items())


def test_the_same_ticket_has_the_same_bytes_and_any_change_another_identity(tmp_path):
    ticket().save(tmp_path / "a.ticket")
    ticket().save(tmp_path / "b.ticket")
    assert (tmp_path / "a.ticket").read_bytes() == (tmp_path / "b.ticket").read_bytes()
    flipped = dict(ticket().masks)
    flipped["encoder.b.weight"] = ~flipped["encoder.b.weight"]
    others = [ticket(round=3), ticket(seeds={"seed": 1}), ticket(masks=flipped)]
    assert len({other.identity for other in [ticket(), *others]}) == 4


def test_a_ticket_of_bert_base_takes_eleven_megabytes(tmp_path):
    one = torch.ones(768, 768, dtype=torch.bool)
    masks = {f"{i}": one for i in range(48)} | {f"f{i}": torch.ones(3072, 768, dtype=torch.bool) for i in range(24)}
    assert sum(mask.numel() for mask in masks.values()) == 84_934_656
    ticket(masks=masks).save(tmp_path / "a.ticket")
    assert (tmp_path / "a.ticket").stat().st_size == pytest.approx(10.6e6, rel=0.02)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_ticket_is_refused(tmp_path, keep):
    path = tmp_path / "a.ticket"
    ticket().save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="truncated"):
        Ticket.load(path)


def test_a_flipped_byte_anywhere_is_refused(tmp_path):
    path = tmp_path / "a.ticket"
    ticket().save(path)
    content = path.read_bytes()
    for place in [*range(0, len(content), 37), len(content) - 1]:
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x01]) + content[place + 1 :])
        with pytest.raises(UserError):
            Ticket.load(path)


def test_a_file_that_is_no_ticket_is_refused(tmp_path):
    path = tmp_path / "a.ticket"
    with pytest.raises(UserError, match="there is no ticket"):
        Ticket.load(path)
    path.write_text("hello")
    with pytest.raises(UserError, match="not a ticket"):
        Ticket.load(path)
    path.write_bytes(safetensors.torch.save({"w": torch.ones(2)}))
    with pytest.raises(UserError, match="no sparseticket record"):
        Ticket.load(path)


def test_a_ticket_that_names_theta_p_is_of_a_format_that_earlier_versions_refuse_by_its_number(tmp_path):
    late = ticket(theta_p=tensor_hashes(WEIGHTS))
    late.save(tmp_path / "a.ticket")
    assert Ticket.load(tmp_path / "a.ticket").theta_p == tensor_hashes(WEIGHTS)
    assert (late.record()["format"], ticket().record()["format"]) == (3, 1) and "theta_p" not in ticket().record()


def test_a_ticket_of_a_newer_format_says_so(tmp_path):
    path = tmp_path / "a.ticket"
    ticket().save(path)

    def newer(header):
        record = json.loads(header["__metadata__"]["sparseticket"]) | {"format": 4}
        header["__metadata__"]["sparseticket"] = json.dumps(record)
        return header

    rewrite(path, newer)
    with pytest.raises(UserError, match="format 4"):
        Ticket.load(path)


def test_a_record_with_another_shape_is_refused_even_with_its_hash_made_to_fit(tmp_path):
    from sparseticket.ticket import _canonical, _identity

    path = tmp_path / "a.ticket"
    ticket().save(path)
    packed = safetensors.torch.load_file(path)

    def reshaped(header):
        record = json.loads(header["__metadata__"]["sparseticket"])
        record["shapes"]["encoder.b.weight"] = [50, 2]
        del record["identity"]
        header["__metadata__"] = {"sparseticket": _canonical(record | {"identity": _identity(record, packed)})}
        return header

    rewrite(path, reshaped)
    with pytest.raises(UserError, match=r"encoder\.b\.weight"):
        Ticket.load(path)


BIAS = "encoder.a.bias"
ROW = torch.tensor([False, True, True])
SHAPED = {
    "2:4": torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1], [1, 0, 0, 1]]),
    "block:2x2": torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1]]),
    "neurons": torch.tensor([[0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]]),
}


def shaped(pattern, mask=None, **vectors):
    mask = (SHAPED[pattern] if mask is None else mask).bool()
    vectors = vectors or ({BIAS: ROW} if pattern == "neurons" else {})
    return ticket(pattern=pattern, masks={"encoder.a.weight": mask, **vectors})


@pytest.mark.parametrize("pattern", SHAPED)
def test_a_ticket_of_a_pattern_comes_back_and_counts_its_matrices_alone(tmp_path, pattern):
    shaped(pattern).save(tmp_path / "a.ticket")
    read = Ticket.load(tmp_path / "a.ticket")
    assert read.identity == shaped(pattern).identity and read.record()["format"] == 2 and read.pattern == pattern
    assert read.sparsity == 1 - int(SHAPED[pattern].sum()) / 12
    if pattern == "neurons":
        assert torch.equal(read.masks[BIAS], ROW)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: shaped("2:4", SHAPED["neurons"]), "is not 2:4"),
        (lambda: shaped("2:4", torch.ones(4, 3)), "no 2:4 pattern"),
        (lambda: shaped("block:2x2", SHAPED["2:4"]), "not made of whole groups of block:2x2"),
        (lambda: shaped("neurons", SHAPED["2:4"]), "not made of whole groups of neurons"),
        (lambda: shaped("neurons", **{BIAS: ~ROW}), r"encoder\.a\.bias is not made of whole groups"),
        (lambda: shaped("neurons", **{BIAS: ROW[:2]}), r"encoder\.a\.bias is not made of whole groups"),
        (lambda: ticket(masks=ticket().masks | {BIAS: ROW}), r"masks encoder\.a\.bias, which no unstructured"),
        (lambda: shaped("2:4", **{BIAS: ROW}), r"masks encoder\.a\.bias, which no 2:4"),
        (lambda: ticket(pattern="0x4"), "no pattern '0x4'"),
        (lambda: ticket(pattern="neurons+heads"), r"is written heads\+neurons"),
    ],
)
def test_masks_that_are_not_of_the_pattern_are_refused_when_read(tmp_path, wrong, says):
    wrong().save(tmp_path / "a.ticket")
    with pytest.raises(UserError, match=says):
        Ticket.load(tmp_path / "a.ticket")


def test_a_round_on_the_way_to_two_of_four_has_three_of_four_everywhere(tmp_path):
    on_the_way = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 1], [1, 1, 0, 1]])
    shaped("2:4", on_the_way).save(tmp_path / "a.ticket")
    assert Ticket.load(tmp_path / "a.ticket").sparsity == 0.25
    on_the_way[0] = torch.tensor([1, 1, 0, 0])
    shaped("2:4", on_the_way).save(tmp_path / "a.ticket")
    with pytest.raises(UserError, match="is not 2:4, nor a round on the way"):
        Ticket.load(tmp_path / "a.ticket")


def test_the_identity_of_an_unstructured_ticket_is_that_of_earlier_versions():
    assert ticket().record()["format"] == 1
    assert ticket().identity == "82a434e113fa0eec50e4d41d28509be73dd405cfc6b1d998b96722cd287684eb"


def test_theta_that_differs_is_an_error_that_names_the_first_tensor():
    other = {**WEIGHTS, "encoder.b.weight": WEIGHTS["encoder.b.weight"] + 1e-7}
    with pytest.raises(UserError, match=r"encoder\.b\.weight differs"):
        ticket().check_theta(tensor_hashes(other))


def test_theta_that_lacks_a_pruned_tensor_is_an_error_but_a_pooler_may_be_missing():
    with pytest.raises(UserError, match=r"prunes encoder\.b\.weight"):
        ticket().check_theta(tensor_hashes({"encoder.a.weight": WEIGHTS["encoder.a.weight"]}))
    pooled = ticket(
        masks=ticket().masks | {"pooler.dense.weight": torch.ones(2, 2, dtype=torch.bool)},
        theta=tensor_hashes(WEIGHTS | {"pooler.dense.weight": torch.ones(2, 2)}),
    )
    assert pooled.check_theta(tensor_hashes(WEIGHTS)) == ["pooler.dense.weight"]


def test_its_masks_have_the_names_of_the_network_that_it_is_in_whatever_the_head():
    backbone = nn.ModuleDict({"a": nn.Linear(4, 3), "b": nn.Linear(2, 5)})
    bert = nn.ModuleDict({"bert": nn.ModuleDict({"encoder": backbone}), "classifier": nn.Linear(5, 2)})
    of_a_pooler = {"pooler.dense.weight": torch.ones(2, 2, dtype=torch.bool)}
    masks = ticket(masks=ticket().masks | of_a_pooler).masks_in(bert)
    assert masks.keys() == {"bert.encoder.a.weight", "bert.encoder.b.weight"}
    assert all(torch.equal(masks[f"bert.{name}"], mask) for name, mask in ticket().masks.items())
    with pytest.raises(UserError, match=r"prunes encoder\.a\.weight, which this model does not have"):
        ticket().masks_in(nn.ModuleDict({"encoder": nn.ModuleDict({"a": nn.Linear(3, 4)})}))


def test_a_hash_tells_name_dtype_shape_and_bytes_apart():
    weight = torch.zeros(2, 3)
    others = [tensor_hash("b", weight), tensor_hash("a", weight.half()), tensor_hash("a", weight.reshape(3, 2))]
    others += [tensor_hash("a", weight + 1), tensor_hash("a", -weight)]  # −0.0 is other bytes
    assert len({tensor_hash("a", weight), *others}) == 6
    assert tensor_hash("a", weight.t().contiguous().t()) == tensor_hash("a", weight)  # not the strides
    assert tensor_hash("n", torch.tensor(5)) != tensor_hash("n", torch.tensor([5]))


def test_a_ticket_is_written_over_nothing_but_another_ticket_outside_of_rounds(tmp_path):
    from sparseticket.ticket import check_ticket_out

    weights, ticket = tmp_path / "model.safetensors", tmp_path / "a.ticket"
    weights.write_bytes(b"trained for days")
    name = "layer.weight"
    Ticket({name: torch.ones(4, 4, dtype=torch.bool)}, "tiny", {name: "0" * 64}, 0.0).save(ticket)
    (tmp_path / "round-01").mkdir()
    (tmp_path / "round-01" / "metrics.json").write_text("{}")
    check_ticket_out(ticket, tmp_path / "input.ticket")
    check_ticket_out(tmp_path / "new.ticket", ticket)
    for out, words in (
        (weights, "no ticket"),
        (ticket, "what is read"),
        (tmp_path, "a folder"),
        (tmp_path / "round-01" / "x.ticket", "finished round"),
    ):
        with pytest.raises(UserError, match=words):
            check_ticket_out(out, ticket)
    assert weights.read_bytes() == b"trained for days"
