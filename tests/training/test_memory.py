"""Out of memory is said with the micro-batch that did it and the settings that help, and changes nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gro.errors import GroError
from gro.policy.packing import Pack
from gro.policy.packing import pack as packs_of
from gro.policy.policy import Policy
from gro.policy.scoring import Scored
from gro.training.memory import is_out_of_memory, naming_the_batch
from gro.types import Completion, Group, Prompt
from jobs_on_sums import cli, sft, write_data


def really() -> None:
    torch.empty(10**15)


def raise_(error: Exception) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


FAILURES: dict[str, Callable[[], object]] = {
    "a processor, really": really,
    "CUDA": raise_(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has ...\nSee more")),
    "Python": lambda: bytearray(10**15),
    "cuBLAS": raise_(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")),
    "C++": raise_(RuntimeError("std::bad_alloc")),
    "Apple": raise_(RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)")),
}


def groups(*sizes: tuple[int, ...]) -> list[Group]:
    """Prompts of 2, 3, … tokens, each with completions of these sizes."""
    return [
        Group(
            Prompt(tuple(range(5, 7 + k)), key=k), tuple(Completion(tuple(range(5, 5 + n)), reward=0.5) for n in mine)
        )
        for k, mine in enumerate(sizes)
    ]


@pytest.mark.fault("P8")
@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("plain_rows", [False, True])
def test_rows_tokens_and_settings_are_named(failure: str, plain_rows: bool) -> None:
    (pack,) = packs_of(groups((4, 6), (5,)), 1000, shared=not plain_rows)
    # A completion's last token predicts nothing: 2 + 3 + 5 and 3 + 4 tokens are run, or three rows of 2 + 5.
    expected = "21 tokens in 3 rows, the longest of 7" if plain_rows else "17 tokens in 3 rows, the longest of 7"
    with pytest.raises(GroError) as caught, naming_the_batch(pack):
        FAILURES[failure]()
    message = str(caught.value)
    assert f"out of memory in a micro-batch of {expected}. It needs a smaller training.tokens_per_micro" in message
    assert "model.activation_checkpointing: true" in message
    assert "\n" not in message


@pytest.mark.fault("P8")
def test_a_single_row_needs_to_be_shorter() -> None:
    (pack,) = packs_of(groups((4,)), 1000)
    with pytest.raises(GroError, match=r"of 5 tokens in one row\. It needs shorter rows, or"), naming_the_batch(pack):
        really()


def test_other_errors_are_left_alone() -> None:
    (pack,) = packs_of(groups((4,)), 1000)
    for error in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory"), KeyError(1)):
        with pytest.raises(type(error), match=re.escape(str(error))), naming_the_batch(pack):
            raise error
        assert not is_out_of_memory(error)


@pytest.mark.fault("P8")
def test_a_run_that_is_out_of_memory_is_left_at_its_last_good_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the same command, with memory, brings it to the end to the same bits."""
    write_data(tmp_path)
    path = sft(tmp_path, training__steps=5, training__resume_every=1)
    assert cli("train", path).code == 0
    weights = (tmp_path / "sft" / "model" / "model.safetensors").read_bytes()
    seen: list[int] = []
    real = Policy.logp

    def logp(self: Policy, pack: Pack, *, entropy: bool = False) -> Scored:
        if (tmp_path / "again" / "state" / "step-3").exists():
            seen.append(pack.tokens)
            really()
        return real(self, pack, entropy=entropy)

    with monkeypatch.context() as patch:
        patch.setattr(Policy, "logp", logp)
        done = cli("train", path, f"run={tmp_path / 'again'}")
    assert done.code == 2
    assert f"out of memory in a micro-batch of {seen[0]} tokens in 16 rows, the longest of " in done.err
    assert done.err.startswith("error: ")
    assert "training.tokens_per_micro" in done.err
    assert "Traceback" not in done.err
    assert sorted(p.name for p in (tmp_path / "again" / "state").iterdir()) == ["step-2", "step-3"]
    done = cli("train", path, f"run={tmp_path / 'again'}")
    assert done.code == 0, done.err
    assert "continues after step 3" in done.out
    assert (tmp_path / "again" / "model" / "model.safetensors").read_bytes() == weights
