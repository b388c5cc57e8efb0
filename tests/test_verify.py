"""`gro algorithms --verify`: what is right passes, and what is wrong fails in the line that says what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs_on_sums import cli

HEAD = """
from dataclasses import dataclass, replace

import torch

from gro.objective import Algorithm, Anchor, Term
from gro.objective.anchors import partner
from gro.objective.credit import GroupMean, Labels
from gro.objective.shares import PerSequence, per_pair, per_sequence
from gro.objective.units import average, total
from gro.objective.values import Identity, identity
from gro.objective.weights import One, Ratio, Logistic


class Plain(One):
    def potential(self, u, v, a, u2):
        return None
"""
DECLARATION = '''

def mine(scale: float = 1.0) -> Algorithm:
    """Push what was better than its group's mean.

    scale: factor on everything.
    """
    return Algorithm(name="mine", credit={credit}, terms=({term},))
'''
RIGHT = "Term(unit=average, share=per_sequence, scale=scale)"
LOSS = """

def mine_loss(update, scale):
    losses = []
    for group in update.groups:
        mean = sum(y.reward for y in group) / len(group)
        losses += [-scale * (y.reward - mean) * y.logp.mean() / len(update.samples) for y in group]
    return sum(losses)
"""


def write(folder: Path, members: str = "", term: str = RIGHT, credit: str = "GroupMean()", loss: str = "") -> str:
    (folder / "mine.py").write_text(HEAD + members + DECLARATION.format(term=term, credit=credit) + loss)
    return f"{folder / 'mine.py'}:mine"


def verdicts(out: str) -> dict[str, str]:
    """holds, FAILS or – by check."""
    lines = [line for line in out.splitlines() if line.startswith(("holds  ", "FAILS  ", "–      "))]
    return {line[7:26].strip(): line[:6].strip() for line in lines}


def failing(out: str) -> set[str]:
    return {name for name, verdict in verdicts(out).items() if verdict == "FAILS"}


def test_what_is_right_passes(tmp_path: Path):
    done = cli("algorithms", "--verify", write(tmp_path, loss=LOSS), "scale=0.5")
    assert done.code == 0, done.out
    found = verdicts(done.out)
    assert found["gradient"] == found["value"] == found["micro batches"] == found["improves"] == "holds"
    assert found["first step"] == "–", "it has no old or ref policy"
    assert len(found) == 20
    assert "paper:" not in cli("algorithms", write(tmp_path, loss=LOSS)).out, "it names none"
    assert "gradient and value are compared with mine_loss of the same file" in done.out
    assert "off by" in done.out
    assert done.out.splitlines()[-1] == "19 checks hold, 0 fail, 1 do not apply"


@pytest.mark.parametrize("arguments", [["dpo"], ["grpo", "beta=0.1", "kl=rk3"]], ids=" ".join)
def test_a_registered_algorithm_passes(arguments: list[str]):
    done = cli("algorithms", "--verify", *arguments)
    assert done.code == 0, done.out
    assert verdicts(done.out)["gradient"] == "–"


def test_demonstrations_may_join_any_algorithm(tmp_path: Path):
    done = cli("algorithms", "--verify", write(tmp_path, loss=LOSS), "ptx=0.3")
    assert done.code == 0, done.out
    assert verdicts(done.out)["gradient"] == "holds"
    assert failing(
        cli("algorithms", "--verify", write(tmp_path, loss=LOSS.replace("-scale", "-2 * scale")), "ptx=1").out
    )


def test_a_loss_that_is_not_the_algorithms(tmp_path: Path):
    done = cli("algorithms", "--verify", write(tmp_path, loss=LOSS.replace("y.logp.mean()", "y.logp.sum()")))
    assert done.code == 1
    assert failing(done.out) == {"gradient", "value"}
    assert "1e-10 allowed (seed " in done.out
    assert "to do: Compare the slots with the loss" in done.out


BY_ROW = """
@dataclass(frozen=True)
class ByRow(Plain):
    def __call__(self, u, v, a, u2):
        return torch.ones_like(u) * torch.arange(1, len(u) + 1).view(-1, 1, 1)
"""
OWN_SHARE = """
@dataclass(frozen=True)
class Local(PerSequence):
    def __call__(self, keep_B, batch, unit, count):
        return (keep_B.double() / keep_B.sum().clamp(min=1))[:, None]
"""
NAN_AT_ZERO = """
@dataclass(frozen=True)
class Sign(Identity):
    def __call__(self, advantage):
        return advantage / advantage.abs()
"""
OTHER_POTENTIAL = """
@dataclass(frozen=True)
class Other(Ratio):
    def potential(self, u, v, a, u2):
        return -v * u
"""
MUTABLE = """
@dataclass
class Loose:
    factor: float = 1.0
    symbol = "1"

    def __call__(self, u, v, a, u2):
        return torch.ones_like(u)

    def potential(self, u, v, a, u2):
        return -v * u
"""
HASHES = MUTABLE.replace("@dataclass", "@dataclass(unsafe_hash=True)")
OVERFLOW = """
@dataclass(frozen=True)
class Overflow(Ratio):
    def __call__(self, u, v, a, u2):
        return u.exp()
"""
UNMASKED = """
@dataclass(frozen=True)
class Unmasked(type(average)):
    def __call__(self, logp_BT, mask_BT):
        return (logp_BT * mask_BT).sum(1, keepdim=True)
"""
NOISE = """
@dataclass(frozen=True)
class Noise(GroupMean):
    def __call__(self, batch, state):
        advantage_BX, state = super().__call__(batch, state)
        return (advantage_BX + 1e-17).masked_fill(batch.reward_B.isnan()[:, None], 0.0), state
"""
NEARLY_ONE = """
@dataclass(frozen=True)
class Nearly(Plain):
    def __call__(self, u, v, a, u2):
        return (u + 1e-9).clamp(-20, 20).exp()
"""
WRONG = {
    "a weight of the row's index": (
        BY_ROW,
        "Term(unit=average, share=per_sequence, weight=ByRow())",
        {"micro batches", "processes", "order", "demonstrations"},
    ),
    "a share of the micro-batch": (
        OWN_SHARE,
        "Term(unit=average, share=Local())",
        {"micro batches", "processes"},
    ),
    "NaN at 0": (
        NAN_AT_ZERO,
        "Term(unit=average, share=per_sequence, value=Sign())",
        {"degenerate updates"},
    ),
    "a potential of another weight": (
        OTHER_POTENTIAL,
        "Term(unit=average, anchor=Anchor('old'), share=per_sequence, weight=Other())",
        {"potential"},
    ),
    "a mutable dataclass": (
        MUTABLE,
        "Term(unit=average, share=per_sequence, weight=Loose())",
        {"a value"},
    ),
    "a mutable dataclass that hashes": (
        HASHES,
        "Term(unit=average, share=per_sequence, weight=Loose())",
        {"a value"},
    ),
    "a weight that overflows where the loss does not": (
        OVERFLOW,
        "Term(unit=average, anchor=Anchor('old'), share=per_sequence, weight=Overflow())",
        {"degenerate updates"},
    ),
    "a mask that multiplies": (
        UNMASKED,
        "Term(unit=Unmasked(), share=per_sequence)",
        {"padding"},
    ),
    "a ratio that is nearly 1": (
        NEARLY_ONE,
        "Term(unit=average, anchor=Anchor('old'), share=per_sequence, weight=Nearly())",
        {"first step"},
    ),
    "the wrong sign": (
        "",
        "Term(unit=average, share=per_sequence, scale=-1.0)",
        {"improves"},
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_fails_in_its_line(name: str, tmp_path: Path):
    members, term, expected = WRONG[name]
    done = cli("algorithms", "--verify", write(tmp_path, members, term))
    assert done.code == 1, done.out
    found = failing(done.out)
    assert expected <= found
    # A NaN spoils many things at once; everything else is told apart.
    assert found == expected or name in ("NaN at 0", "a mask that multiplies", "a weight of the row's index"), done.out


def test_noise_in_place_of_equal_rewards(tmp_path: Path):
    done = cli("algorithms", "--verify", write(tmp_path, NOISE, credit="Noise()"))
    assert failing(done.out) == {"equal rewards"}


def test_undocumented_parameters(tmp_path: Path):
    spec = write(tmp_path)
    path = tmp_path / "mine.py"
    path.write_text(path.read_text().replace("    scale: factor on everything.\n", ""))
    done = cli("algorithms", "--verify", spec)
    assert failing(done.out) == {"documented"}
    assert "found: the docstring has no line `scale: ...` (scale)" in done.out


# --- mistakes in the user's file ------------------------------------------------------------------------------------


def test_an_error_in_a_slot_names_file_and_line(tmp_path: Path):
    members = BY_ROW.replace("torch.ones_like(u)", "u.nothing")
    done = cli("algorithms", "--verify", write(tmp_path, members, WRONG["a weight of the row's index"][1]))
    assert done.code == 1
    line = (
        (tmp_path / "mine.py")
        .read_text()
        .splitlines()
        .index("        return u.nothing * torch.arange(1, len(u) + 1).view(-1, 1, 1)")
    )
    assert (
        f"found: raised {tmp_path / 'mine.py'}, line {line + 1}: AttributeError: 'Tensor' object has no attr"
        in done.out
    )
    assert "Traceback" not in done.out + done.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("import torch", "import torch\nimport nothing_of_this_name"), "line 5: ModuleNotFoundError: No module named"),
        (("import torch", "import torch\ndef ("), "line 5: SyntaxError: invalid syntax"),
        (("credit=GroupMean()", "credit=Nothing()"), "NameError: name 'Nothing' is not defined"),
        (('return Algorithm(name="mine", ', "return dict(name=1, "), "it returns dict; a declaration returns"),
        (("scale: float = 1.0", "scale: float = 1.0, *, more: int"), "algorithm.more: missing"),
    ],
    ids=["import", "syntax", "name", "result", "parameter"],
)
def test_a_file_that_cannot_be_used(change: tuple[str, str], message: str, tmp_path: Path):
    spec = write(tmp_path)
    path = tmp_path / "mine.py"
    path.write_text(path.read_text().replace(*change))
    done = cli("algorithms", "--verify", spec)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.out + done.err


def test_what_is_asked_for_is_checked():
    assert "'scale': a parameter is key=value" in cli("algorithms", "--verify", "dpo", "scale").err
    assert "--verify checks one algorithm" in cli("algorithms", "--verify").err
    assert "algorithm.bta: dpo has no such parameter" in cli("algorithms", "--verify", "dpo", "bta=1").err
    assert "β = 0.7" in cli("algorithms", "dpo", "beta=0.7").out
