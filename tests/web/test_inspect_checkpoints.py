"""Of which weights the probabilities are, by numbers: those of adapters, states, refreshed references, removed ones."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inspected_runs import folder, records, trained, written
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict_saver import save as save_parts

from gro.config import load_config
from gro.errors import GroError
from gro.runs import RunReader
from gro.runs.records import RolloutRecord
from gro.web.inspect.actions import Models, Whose
from gro.web.inspect.checkpoints import Weights, reference_after, reference_of, start_folder
from gro.web.inspect.worker import Worker, told


@pytest.fixture
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a run of five steps, from which things may be removed: states of the steps 3 and 4 are kept."""
    shutil.copytree(trained(request.param), tmp_path / request.param)
    return tmp_path / request.param


def asked(worker: Worker, step: int) -> tuple[dict[str, Any], float, float | None]:
    """What is said of a step's longest completion; and by how much the log-probs of its tokens are off the recorded
    ones, under policy and reference."""
    record = max(records(worker.run, step), key=lambda r: len(r.completion_ids))
    off: list[float] = []
    off_reference: list[float] = []
    found: dict[str, Any] = {}
    for at, taken in enumerate(record.completion_ids):
        found = worker.answer({"do": "actions", "step": step, "row": record.row, "at": at})
        here = found["ids"].index(taken)
        off.append(abs(np.log(found["policy"][here]) - record.tokens["logp"][at]))
        if found["reference"] is not None:
            off_reference.append(abs(np.log(found["reference"][here]) - record.tokens["ref"][at]))
    return found, max(off), max(off_reference) if off_reference else None


@pytest.mark.parametrize("run", ["lora"], indirect=True)
def test_an_adapter_of_a_state_and_of_the_exported_model(run: Path) -> None:
    worker = Worker(run)
    tensors = load_file(run / "state" / "step-4" / "weights.safetensors")
    assert all("lora_" in name for name in tensors), "the state has the adapter alone"
    for step, policy in ((1, "the model it started from"), (4, "state/step-3"), (5, "state/step-4")):
        found, off, off_reference = asked(worker, step)
        assert found["whose"] == [f"Policy: {policy}, exactly the weights of this step."]
        assert off < 1e-4
        assert off_reference is not None
        assert off_reference < 1e-4
    _, far, _ = asked(worker, 3)
    assert far > 1e-3, "or the weights of another step would do as well"
    shutil.rmtree(run / "state")
    found, off, _ = asked(worker, 5)
    assert found["whose"] == ["Policy: model, the nearest: 1 step later."]
    assert not found["exact"]
    assert 1e-4 < off < 1


@pytest.mark.parametrize("run", ["refreshed"], indirect=True)
def test_a_reference_that_was_refreshed(run: Path) -> None:
    """After every second step: from a state of that time, from the policy's own weights, or not at all."""
    worker = Worker(run)
    found, off, off_reference = asked(worker, 2)
    assert found["whose"] == ["Policy: the model it started from, the nearest: 1 step earlier."]
    assert off_reference is not None
    assert off_reference < 1e-4
    found, off, off_reference = asked(worker, 3)
    assert found["whose"] == [
        "Policy: state/step-3, the nearest: 1 step later.",
        "Reference: the policy after 2 steps, as it was refreshed (state/step-3).",
    ]
    assert off_reference is not None
    assert off_reference < 1e-4 < off
    found, off, off_reference = asked(worker, 5)
    assert found["whose"][1] == "Reference: the policy after 4 steps, as it was refreshed (state/step-4)."
    assert off_reference is not None
    assert max(off, off_reference) < 1e-4
    shutil.rmtree(run / "state" / "step-3")
    found, _, off_reference = asked(worker, 3)
    assert off_reference is None
    assert found["whose"][1:] == [
        "The reference of this step is the policy after 2 steps, whose weights are not on this machine."
    ]
    assert not found["exact"]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("run", ["refreshed"], indirect=True)
def test_a_state_that_several_processes_have_written(run: Path) -> None:
    """Each its part; here one has all of them."""
    state = run / "state" / "step-4"
    policy = load_file(state / "weights.safetensors")
    reference = {name: tensor + 1 for name, tensor in load_file(state / "reference.safetensors").items()}
    both = {f"policy/{n}": t for n, t in policy.items()} | {f"reference reference/{n}": t for n, t in reference.items()}
    memory = {"policy: exp_avg of x": policy["model.norm.weight"]}
    save_parts(both | memory, checkpoint_id=state / "parts", no_dist=True)
    for name in ("weights", "reference"):
        (state / f"{name}.safetensors").unlink()
    found, off, _ = asked(Worker(run), 5)
    assert found["whose"][0] == "Policy: state/step-4, exactly the weights of this step."
    assert off < 1e-4
    models = Models(load_config(run, needs=()))
    with RunReader(run) as reader:
        start = start_folder(reader)
    models.logits([Weights(4, state, "reference")], start, [1])
    ((_, model),) = models._kept.items()
    assert (model.get_parameter("model.norm.weight") == reference["model.norm.weight"]).all()


def test_which_reference_a_step_had() -> None:
    assert [reference_after(step, 3) for step in range(1, 9)] == [0, 0, 0, 3, 3, 3, 6, 6]
    assert [reference_after(step, 0) for step in (1, 5)] == [0, 0]


@pytest.mark.parametrize("run", ["lora"], indirect=True)
def test_weights_that_go_while_they_are_wanted(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on removes its oldest state, and writes others."""
    worker, load = Worker(run), Models._load
    assert asked(worker, 4)[0]["whose"][0].startswith("Policy: state/step-3, exactly")

    def late(models: Models, weights: Weights, start: Path | None) -> Any:
        if weights.path.name == "step-4" and weights.path.exists():
            shutil.rmtree(weights.path)
        return load(models, weights, start)

    monkeypatch.setattr(Models, "_load", late)
    assert asked(worker, 5)[0]["whose"] == ["Policy: state/step-3, the nearest: 1 step earlier."]
    shutil.rmtree(run / "state" / "step-3")
    assert asked(worker, 4)[0]["whose"] == ["Policy: model, the nearest: 2 steps later."]
    (run / "model" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(GroError, match=r"model\.safetensors"):
        asked(Worker(run), 4)


@pytest.mark.parametrize("run", ["lora"], indirect=True)
def test_weights_that_are_replaced_under_the_same_name_are_read_again(run: Path) -> None:
    worker = Worker(run)
    before = asked(worker, 5)[0]["policy"]
    again = run / "state" / "again"
    shutil.copytree(run / "state" / "step-3", again)
    shutil.rmtree(run / "state" / "step-4")
    again.rename(run / "state" / "step-4")
    assert not np.allclose(asked(worker, 5)[0]["policy"], before, rtol=1e-3)


def test_who_sampled_a_completion_of_an_earlier_step() -> None:
    """As from a buffer: it was drawn by an earlier policy than the one that learns from it."""
    run = Path("runs/x")
    start, two = Weights(0, Path("start"), "model"), Weights(2, run / "checkpoints" / "step-2", "model")
    record = RolloutRecord(
        group=0, row=0, prompt="", prompt_ids=[1], completion="", completion_ids=[1], finish="stop", version=1
    )
    assert told(Whose(two, start, start), 3, record, 0, run) == [
        "Policy: checkpoints/step-2, exactly the weights of this step.",
        "It was sampled 1 step before: sampler is the model it started from, the nearest: 1 step earlier.",
    ]
    assert told(Whose(two, start, two), 3, replace(record, version=2), 0, run)[1:] == []
    assert told(Whose(two, None, None), 3, replace(record, finish="given"), 0, run)[1:] == [
        "The model that the run started from was not found, so there is no reference."
    ]


def test_a_start_beside_the_run_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes name it as it is seen from where the run was started."""
    one = RolloutRecord(group=0, row=0, prompt="p", prompt_ids=[1], completion="c", completion_ids=[1])
    config = {"run": "runs/second", "model": {"path": "runs/first"}}
    run = written(tmp_path / "project" / "runs" / "second", [[one]], config)
    (run.parent / "first" / "model").mkdir(parents=True)
    (run.parent / "first" / "run.db").touch()
    monkeypatch.chdir(tmp_path)
    with RunReader(run) as reader:
        assert start_folder(reader) == run.parent / "first" / "model"
    moved = run.rename(tmp_path / "elsewhere")
    with RunReader(moved) as reader:
        assert start_folder(reader) is None
        monkeypatch.chdir(tmp_path / "project")
        found = start_folder(reader)
    assert found is not None
    assert found.absolute() == run.parent / "first" / "model"


def test_a_start_that_the_hub_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked for among what this machine has of the hub, and never fetched."""
    cache = tmp_path / "hub" / "models--somebody--tiny"
    snapshot = cache / "snapshots" / "0123"
    shutil.copytree(folder() / "sft" / "model", snapshot)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    one = RolloutRecord(group=0, row=0, prompt="p", prompt_ids=[1], completion="c", completion_ids=[1])
    for name, expected in (("somebody/tiny", snapshot), ("somebody/else", None), ("no name/at/all", None)):
        run = written(tmp_path / name.replace("/", "-"), [[one]], {"model": {"path": name}})
        with RunReader(run) as reader:
            assert start_folder(reader) == expected
            assert reference_of(reader, 1, 0) == (None if expected is None else Weights(0, snapshot, "model"))
