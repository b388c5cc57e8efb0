"""The comparison with the peer: what makes it void, and that both sides are given the same rows."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

from gro.training.sources import Order

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
common, run = importlib.import_module("common"), importlib.import_module("run")


def steps(*pairs: tuple[float, float]) -> list[dict[str, float]]:
    return [{"loss": loss, "grad_norm": norm} for loss, norm in pairs]


@pytest.mark.parametrize(
    ("theirs", "equal"),
    [
        (steps((0.69315, 10.0), (0.7001, 12.0)), True),
        (steps((0.69315, 10.0), (0.70009, 12.006)), True),
        (steps((0.69315, 10.0), (0.7003, 12.0)), False),  # a loss
        (steps((0.69315, 10.0), (0.7001, 12.02)), False),  # a norm
        (steps((0.69315, float("nan")), (0.7001, 12.0)), False),
    ],
)
def test_a_comparison_is_void_unless_every_loss_and_norm_agree(theirs, equal) -> None:
    shown, agree = run.agreement(steps((0.69315, 10.0), (0.7001, 12.0)), theirs)
    assert agree is equal
    assert len(shown.splitlines()) == 4  # header, rule, two steps


def test_gro_shuffles_its_rows_into_the_order_in_which_the_peer_reads_them() -> None:
    rows = [{"prompt": str(i)} for i in range(40)]
    ours = run.unshuffled(rows)
    assert ours != rows
    assert [ours[i] for i in Order(40, 0).rows(0, 40)] == rows


def test_a_transcript_is_split_at_its_last_answer() -> None:
    start = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    row = common.split_transcript(start + " yes", start + " no")
    assert row == {"prompt": start, "chosen": " yes", "rejected": " no"}


@pytest.mark.parametrize("rejected", ["\n\nHuman: x\n\nAssistant: no", "\n\nHuman: a\n\nAssistant:"])
def test_pairs_without_a_common_prompt_or_an_answer_are_left_out(rejected) -> None:
    assert common.split_transcript("\n\nHuman: a\n\nAssistant: yes", rejected) is None


def test_the_digest_tells_equal_counts_of_other_ids_apart() -> None:
    one, other = common.digest([[[1, 2], [3]]]), common.digest([[[1, 2], [4]]])
    assert one["tokens"] == other["tokens"] == [2, 1]
    assert one["sha256"] != other["sha256"]
    # Where a prompt ends is part of it.
    assert common.digest([[[1], [2, 3]]])["sha256"] != one["sha256"]


def test_a_job_survives_its_command_line() -> None:
    job = common.Job("dpo", "model", "data", 3, 1e-5, options={"training": {"tokens_per_micro": 64}})
    assert common.Job.from_json(job.to_json()) == job
    assert json.loads(job.to_json())["kind"] == "dpo"
