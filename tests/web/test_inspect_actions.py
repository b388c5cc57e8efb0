"""What else could have been done in a state: probabilities from a checkpoint, by another process."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from inspected_runs import folder, records, trained, written
from transformers import AutoModelForCausalLM

from gro.engines.base import Sampling
from gro.errors import GroError
from gro.runs import RunReader
from gro.runs.records import RolloutRecord
from gro.web.inspect.actions import top_actions
from gro.web.inspect.asking import Asking
from gro.web.inspect.checkpoints import Weights, nearest, saved
from gro.web.inspect.words import words_of
from gro.web.inspect.worker import Worker
from jobs_on_sums import cli


def softmax(path: Path, ids: list[int], temperature: float) -> torch.Tensor:
    """By transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(path)
    with torch.inference_mode():
        return (model(torch.tensor([ids])).logits[0, -1].double() / temperature).softmax(-1)


def restricted(p_V: torch.Tensor, top_k: int, top_p: float) -> dict[int, float]:
    """Top-k, then the smallest set that reaches top_p of what is left, renormalised; by sorting."""
    order = p_V.argsort(descending=True).tolist()[:top_k]
    total, mass, kept = float(p_V[order].sum()), 0.0, []
    for token in order:
        if mass >= top_p * total:
            break
        kept.append(token)
        mass += float(p_V[token])
    return {token: float(p_V[token]) / mass for token in kept}


@pytest.mark.parametrize(("step", "place"), [(1, None), (3, "checkpoints/step-2")])
def test_actions_are_transformers_softmax_of_the_same_checkpoint(step: int, place: str | None) -> None:
    run = trained("grpo")
    worker = Worker(run)
    start = folder() / "sft" / "model"
    record = max(records(run, step), key=lambda r: len(r.completion_ids))
    for at in range(len(record.completion_ids)):
        found = worker.answer({"do": "actions", "step": step, "row": record.row, "at": at})
        prefix = [*record.prompt_ids, *record.completion_ids[:at]]
        policy_V = softmax(run / place if place else start, prefix, 0.8)
        taken = record.completion_ids[at]
        assert found["whose"] == [f"Policy: {place or 'the model it started from'}, exactly the weights of this step."]
        assert found["exact"]
        assert list(found["ids"][:50]) == policy_V.topk(50).indices.tolist()
        assert taken in found["ids"]
        np.testing.assert_allclose(found["policy"], policy_V[list(found["ids"])], rtol=1e-4)
        np.testing.assert_allclose(found["reference"], softmax(start, prefix, 0.8)[list(found["ids"])], rtol=1e-4)
        drawn = restricted(policy_V, 40, 0.9)
        np.testing.assert_allclose(found["sampler"], [drawn.get(i, 0.0) for i in found["ids"]], rtol=1e-4)
        assert found["rank"] == int((policy_V > policy_V[taken]).sum()) + 1
        # These are the very weights that were trained: the recorded log-probs are theirs.
        here = found["ids"].index(taken)
        np.testing.assert_allclose(np.log(found["policy"][here]), record.tokens["logp"][at], atol=1e-4)
        np.testing.assert_allclose(np.log(found["sampler"][here]), record.tokens["sampler"][at], atol=1e-4)


def test_a_token_outside_the_top_is_added_and_ranked() -> None:
    logits = torch.arange(100.0).flip(0) / 10  # token 0 is the most probable
    state = top_actions(logits, None, None, 70, Sampling(), top=50)
    assert state.ids == (*range(50), 70)
    assert (state.rank, state.reference, state.sampler) == (71, None, None)
    np.testing.assert_allclose(state.policy[-1], logits.double().softmax(-1)[70])
    with pytest.raises(GroError, match="token 100 is not in the model's vocabulary of 100"):
        top_actions(logits, None, None, 100, Sampling())


def test_the_nearest_weights_are_taken_and_of_two_the_earlier(tmp_path: Path) -> None:
    found = [Weights(n, tmp_path / str(n), "model") for n in (0, 4, 10)]
    assert [nearest(found, after, tmp_path).after for after in (0, 2, 3, 7, 8, 99)] == [0, 0, 4, 4, 10, 10]
    with pytest.raises(GroError, match=r"has no weights to load.*save_every"):
        nearest([], 3, tmp_path)
    with RunReader(trained("grpo")) as reader:
        assert [(w.after, w.kind) for w in saved(reader)] == [(0, "model"), (2, "model"), (3, "model")]


def test_the_weights_of_a_state_lie_over_the_start(tmp_path: Path) -> None:
    """A run that goes on has states before it has a model."""
    from safetensors.torch import load_file, save_file

    run = trained("grpo")
    worker = Worker(run)
    tensors = load_file(run / "model" / "model.safetensors")
    state = run / "state" / "step-1"
    state.mkdir(parents=True)
    try:
        save_file(
            {n: t + 0.125 if n.endswith("norm.weight") else t for n, t in tensors.items()},
            state / "weights.safetensors",
        )
        record = records(run, 2)[0]
        found = worker.answer({"do": "actions", "step": 2, "row": record.row, "at": 0})
        assert found["whose"] == ["Policy: state/step-1, exactly the weights of this step."]
        moved = AutoModelForCausalLM.from_pretrained(run / "model")
        with torch.no_grad():
            for name, parameter in moved.named_parameters():
                parameter.add_(0.125 if name.endswith("norm.weight") else 0.0)
            expected = (moved(torch.tensor([list(record.prompt_ids)])).logits[0, -1].double() / 0.8).softmax(-1)
        np.testing.assert_allclose(found["policy"], expected[list(found["ids"])], rtol=1e-4)
    finally:
        (state / "weights.safetensors").unlink()
        state.rmdir()
        state.parent.rmdir()


def test_tokens_as_text() -> None:
    run = trained("grpo")
    record = records(run, 1)[0]
    with RunReader(run) as reader:
        words = words_of(reader)
    assert "".join(words(record.prompt_ids)) == record.prompt
    assert words([10**6]) == ["#1000000"]


@pytest.fixture
def asking() -> Asking:
    return Asking(trained("sft"), idle=600)


def test_the_worker_answers_refuses_dies_and_is_started_again(asking: Asking) -> None:
    try:
        assert len(asking.ask("actions", step=1, row=0, at=0)["policy"]) >= 50
        first = asking._process
        with pytest.raises(GroError, match="has no completion 99"):
            asking.ask("actions", step=1, row=99, at=0)
        with pytest.raises(GroError, match="step 77 has no completion 0"):
            asking.ask("actions", step=77, row=0, at=0)
        assert first is not None
        assert asking._process is first
        first.kill()
        first.wait()
        assert len(asking.ask("actions", step=1, row=0, at=0)["policy"]) >= 50
        assert asking._process is not first
    finally:
        asking.close()
    assert asking._process is None


def test_an_idle_worker_ends_and_a_silent_one_is_ended() -> None:
    asking = Asking(trained("sft"), idle=0.2)
    try:
        asking.seconds = 0.0
        with pytest.raises(GroError, match="no answer within 0 s"):
            asking.ask("actions", step=1, row=0, at=0)
        assert asking._process is None
        asking.seconds = 300.0
        asking.ask("actions", step=1, row=0, at=0)
        process = asking._process
        assert process is not None
        assert process.wait(60) == 0
    finally:
        asking.close()


def test_a_run_without_any_weights_says_so(tmp_path: Path) -> None:
    config = {"run": "x", "model": str(tmp_path / "gone"), "algorithm": "grpo", "online": {"path": "gone.jsonl"}}
    config |= {"rewards": ["exact_match"], "training": {"steps": 1}, "prompts_per_step": 1, "group_size": 2}
    one = RolloutRecord(group=0, row=0, prompt="p", prompt_ids=[1], completion="c", completion_ids=[1], reward=1.0)
    run = written(tmp_path / "run", [[one]], config)
    with pytest.raises(GroError, match="has no weights to load"):
        Worker(run).answer({"do": "actions", "step": 1, "row": 0, "at": 0})


def test_a_device_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = cli("inspect", written(tmp_path / "run", []), "--device", "tpu")
    assert done.code == 2
    assert "--device: found 'tpu'; expected auto, cpu" in done.err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(GroError, match="finds no CUDA device"):
        Worker(trained("sft"), "cuda").answer({"do": "actions", "step": 1, "row": 0, "at": 0})


def test_a_reward_model_has_no_actions(tmp_path: Path) -> None:
    config = {"run": "x", "model": str(tmp_path / "gone"), "algorithm": "bradley_terry", "prompts_per_step": 1}
    config |= {"offline": {"path": "gone.jsonl"}, "training": {"steps": 1}}
    one = RolloutRecord(group=0, row=0, prompt="p", prompt_ids=[1], completion="c", completion_ids=[1], reward=1.0)
    run = written(tmp_path / "run", [[one]], config)
    with pytest.raises(GroError, match="a reward model gives a score"):
        Worker(run).answer({"do": "actions", "step": 1, "row": 0, "at": 0})


def test_the_server_never_imports_torch() -> None:
    code = """
import sys
from gro.web.inspect.routes import Inspecting
from serving import served
inspecting = Inspecting(sys.argv[1])
with served(inspecting.routes) as server:
    status, run = server.get("/api/inspect/run")
    assert status == 200 and run["steps"], run
    status, step = server.get(f"/api/inspect/steps/{run['steps'][0]}")
    assert status == 200 and step["groups"][0]["tokens"], step
    status, row = server.get(f"/api/inspect/steps/{run['steps'][0]}/rows/0")
    assert status == 200 and row["quantities"]["coefficient"], row
    assert server.get("/api/inspect/steps/999") == (404, {"error": "this run has no rollouts of step 999"})
    assert server.get("/api/inspect/steps/99999999999999999999")[0] == 404
    assert server.get(f"/api/inspect/steps/{run['steps'][0]}/rows/99")[0] == 404
    assert server.get(f"/api/inspect/steps/{run['steps'][0]}/rows/0/actions/99999")[0] == 404
print([name for name in ("torch", "transformers") if name in sys.modules])
"""
    here = [str(folder) for folder in Path(__file__).parents[:2]]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {here!r}\n{code}", str(trained("grpo"))],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.stdout.strip() == "[]", done.stdout + done.stderr + f" after {time.monotonic() - started:.0f} s"
