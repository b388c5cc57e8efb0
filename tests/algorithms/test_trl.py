"""TRL's own trainers on the same log-probs: the same loss and the same gradient.

Runs where TRL 1.16 can be imported: by this interpreter, or by `.venv-trl`, which `make .venv-trl/installed` makes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gro.algorithms import build, names
from gro.objective import Algorithm, coefficients, loss_value
from gro.types import Batch
from objective.fixture import with_advantage

ROOT = Path(__file__).parents[2]
PEER = ROOT / ".venv-trl" / "bin" / "python"
SCRIPT = Path(__file__).with_name("trl_losses.py")

SINGLE = 1e-6
"""TRL's advantages are in single precision."""
LENGTHS, GROUP_SIZE, LIMIT = (2, 3, 1, 4, 3, 1, 4, 2), 4, 4
REWARDS = (1.0, 0.0, 0.5, 0.0, 0.2, 0.2, 0.9, 0.4)

GRPO: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    # algorithm, its parameters, GRPOConfig's; the first has none of either: both are the defaults
    ("grpo_trl", {}, {}),
    ("grpo_trl", {"beta": 0.3}, {"beta": 0.3}),
    ("grpo_trl", {"beta": 0.3, "bias_correction": False}, {"beta": 0.3, "use_bias_correction_kl": False}),
    ("grpo_trl", {"delta": 1.5}, {"delta": 1.5}),
    ("grpo_trl", {"scale_rewards": "none"}, {"scale_rewards": "none"}),
    *(("grpo_trl", {"loss_type": loss}, {"loss_type": loss}) for loss in ("grpo", "bnpo", "dr_grpo", "sapo")),
    (
        "grpo_trl",
        {"loss_type": "cispo", "epsilon_high": 1.28},
        {"loss_type": "cispo", "epsilon_high": 1.28},
    ),
    (
        "grpo_trl",
        {"loss_type": "grpo", "epsilon": 0.1, "epsilon_high": 0.15, "sequence_level": True},
        {"loss_type": "grpo", "epsilon": 0.1, "epsilon_high": 0.15, "importance_sampling_level": "sequence"},
    ),
    ("grpo", {"ddof": 1, "eps": 1e-4, "beta": 0.2, "kl": "rk3"}, {"loss_type": "grpo", "beta": 0.2}),
    (
        "grpo",
        {"ddof": 1, "eps": 1e-4, "beta": 0.2},
        {"loss_type": "grpo", "beta": 0.2, "use_bias_correction_kl": False},
    ),
    ("bnpo", {"ddof": 1, "eps": 1e-4}, {"loss_type": "bnpo"}),
    ("dr_grpo", {}, {"loss_type": "dr_grpo", "scale_rewards": "none"}),
    (
        "dapo",
        {"ddof": 1, "eps": 1e-4, "tokens": "batch"},
        {"loss_type": "dapo", "epsilon_high": 0.28},
    ),
    (
        "cispo",
        {"ddof": 1, "eps": 1e-4, "tokens": "batch"},
        {"loss_type": "cispo", "epsilon_high": 5.0},
    ),
    ("sapo", {"ddof": 1, "eps": 1e-4}, {"loss_type": "sapo"}),
    (
        "gspo",
        {"ddof": 1, "eps": 1e-4},
        {"loss_type": "grpo", "epsilon": 3e-4, "epsilon_high": 4e-4, "importance_sampling_level": "sequence"},
    ),
]  # fmt: skip
DPO: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("dpo", {}, {}),
    ("dpo", {"beta": 0.4}, {"beta": 0.4}),
    ("dpo", {"robust": True, "label_smoothing": 0.1}, {"loss_type": ["robust"], "label_smoothing": 0.1}),
    ("gpo", {"loss": "hinge"}, {"loss_type": ["hinge"]}),
    ("ipo", {"unit": "average"}, {"loss_type": ["ipo"]}),
    ("exo", {"label_smoothing": 0.01}, {"loss_type": ["exo_pair"], "label_smoothing": 0.01}),
    ("nca", {}, {"loss_type": ["nca_pair"]}),
    ("sppo", {}, {"loss_type": ["sppo_hard"]}),
    ("apo_zero", {}, {"loss_type": ["apo_zero"]}),
    ("apo_down", {}, {"loss_type": ["apo_down"]}),
]


def rows(seed: int) -> list[list[float]]:
    random = torch.Generator().manual_seed(seed)
    return [(-0.1 - 2 * torch.rand(n, generator=random, dtype=torch.float64)).tolist() for n in LENGTHS]


LOGP = rows(0)
OLD, REF = (
    [[x + 0.3 * y + 0.25 for x, y in zip(a, b, strict=True)] for a, b in zip(LOGP, rows(seed), strict=True)]
    for seed in (1, 2)
)
"""Log-ratios on both sides of every clip."""


@cache
def trl() -> list[dict[str, Any]]:
    """TRL's answer to every case, from one process."""
    if importlib.util.find_spec("trl") is not None:
        python = sys.executable
    elif PEER.is_file():
        python = str(PEER)
    else:
        pytest.skip("TRL is not installed: `make .venv-trl/installed`")
    cases = [{"trainer": "grpo", "config": config} for _, _, config in GRPO]
    cases += [{"trainer": "dpo", "config": config} for _, _, config in DPO]
    job = {"cases": cases, "logp": LOGP, "old": OLD, "ref": REF, "rewards": REWARDS}
    job |= {"group_size": GROUP_SIZE, "limit": LIMIT}
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(
        [python, str(SCRIPT)], input=json.dumps(job), capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def padded(values: list[list[float]]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(v, dtype=torch.float64) for v in values], batch_first=True)


def batch_of(algorithm: Algorithm, group_size: int, rewards: tuple[float, ...]) -> Batch:
    mask_BT = torch.arange(max(LENGTHS))[None, :] < torch.tensor(LENGTHS)[:, None]
    batch = Batch(
        mask_BT,
        torch.arange(len(LENGTHS)) // group_size,
        torch.tensor(rewards, dtype=torch.float64),
        old_BT=padded(OLD),
        ref_BT=padded(REF),
        length_limit=LIMIT,
    )
    return with_advantage(batch, algorithm)


def compare(algorithm: Algorithm, batch: Batch, answer: dict[str, Any]) -> None:
    logp_BT, expected_BT = padded(LOGP), padded(answer["gradient"])
    assert bool(expected_BT.any())
    torch.testing.assert_close(-coefficients(logp_BT, batch, algorithm), expected_BT, rtol=0, atol=SINGLE)
    assert float(loss_value(logp_BT, batch, algorithm)) == pytest.approx(answer["loss"], abs=SINGLE)


@pytest.mark.parametrize("case", range(len(GRPO)), ids=lambda i: f"{GRPO[i][0]}-{GRPO[i][2]}")
def test_policy_gradients_are_trls(case: int):
    name, params, _ = GRPO[case]
    algorithm = build(name, **params)
    compare(algorithm, batch_of(algorithm, GROUP_SIZE, REWARDS), trl()[case])


@pytest.mark.parametrize("case", range(len(DPO)), ids=lambda i: f"{DPO[i][0]}-{DPO[i][2]}")
def test_preferences_are_trls(case: int):
    name, params, _ = DPO[case]
    if name not in names():
        pytest.skip(f"no algorithm {name}")
    algorithm = build(name, **params)
    compare(algorithm, batch_of(algorithm, 2, (1.0, -1.0) * 4), trl()[len(GRPO) + case])
