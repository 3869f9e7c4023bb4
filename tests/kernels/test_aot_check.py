import pytest

from sparseticket.kernels import aot_check
from sparseticket.kernels.aot import Compiled
from sparseticket.kernels.aot_check import Configuration, configurations, judge
from sparseticket.kernels.dispatch import Case, Choice, Measured, Table, table_path


def made(shared=1024, spilled=0):
    return Compiled("", "", shared, spilled)


def broken():
    raise RuntimeError("PassManager::run failed\nmore")


@pytest.mark.parametrize(
    "compiler,required,problem,fails",
    [
        (made, True, None, False),
        (lambda: made(spilled=8), True, "spills 8 bytes", True),
        (lambda: made(spilled=8), False, "spills 8 bytes", False),
        (lambda: made(shared=300 * 1024), True, "needs 300 KB of 227", True),
        (lambda: made(shared=300 * 1024), False, "needs 300 KB of 227", False),
        (broken, False, "does not compile: PassManager::run failed", True),
    ],
)
def test_what_is_required_must_fit_and_not_spill_and_a_candidate_is_named(compiler, required, problem, fails):
    verdict = judge(Configuration("one", 90, compiler, required))
    assert (verdict.name, verdict.problem, verdict.fails) == ("sm_90 one", problem, fails)


def test_defaults_and_candidates_of_every_operator_are_compiled_for_three_generations_each_once():
    found = list(configurations())
    names = [(one.arch, one.name) for one in found]
    assert len(set(names)) == len(names)
    for operator in ("bsr", "conv2d", "masked", "bitmap", "masked_adamw", "live_adamw", "masked_sgd", "masked_norm"):
        for required in (True, False):
            archs = {one.arch for one in found if one.name.split()[0] == operator and one.required == required}
            assert archs == {80, 90, 120}, operator


def test_what_a_table_picks_is_required_on_its_gpu_alone_and_what_it_leaves_dense_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(aot_check, "TABLES", tmp_path)
    tiles = (128, 128, 32, 8, 5)  # no candidate
    case = Case("infer", 768, 768, "block:128x128", "bfloat16")
    cells = [
        Measured(case, 64, 0.3, Choice("bsr_packed", tiles), 1.5, 1.4, 1.6),
        Measured(case, 128, 0.3, Choice("bsr_packed", (64, *tiles[1:])), 0.9, 0.8, 1.0),
    ]
    table_path("NVIDIA H100", tmp_path).write_text(Table("NVIDIA H100", cells=cells).to_json())
    found = [one for one in configurations("-32-8-5")]
    assert [(one.arch, one.required) for one in found] == [(90, True)]
    assert found[0].name == "bsr packed 128x128 128-128-32-8-5 bfloat16"
    assert found[0].compile().spilled == 0


def test_the_command_compiles_what_was_asked_for_and_ends_well(capsys):
    with pytest.raises(SystemExit) as ended:
        aot_check.main(["--only", "sm_80 masked_norm 1024-4"])
    assert ended.value.code == 0 and "1 configurations compiled, 0 fail" in capsys.readouterr().out
