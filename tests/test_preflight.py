"""What is found before weights are loaded: the first batch and its weights, ends of completions, memory, disk."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from gro.assemble import Data, build_algorithm, load_data, sampling_of, source_of, start_of
from gro.config import Config, load_config
from gro.data.dataset import Dataset
from gro.data.encode import load_dataset
from gro.data.spec import DataSpec
from gro.errors import GroError
from gro.policy.policy import Policy
from gro.policy.spec import LoraSettings
from gro.preflight import check_directory, estimate, needs, preflight, refuse_without_room
from gro.preflight import machine as machines
from gro.preflight.batch import First, Row, first_batch
from gro.preflight.disk import Disk
from gro.preflight.endings import check_endings
from gro.preflight.estimate import check_memory
from gro.preflight.machine import Machine
from gro.preflight.masks import show_batch
from gro.preflight.memory import micro_tokens
from gro.preflight.sizes import sizes
from gro.runs import files
from gro.training.descent import Descent
from gro.training.settings import Optimization
from gro.types import Completion, Group, Prompt
from jobs_on_sums import CREATE, cli, dpo, online, recipe, sft, write_data, write_rows
from tiny import tiny_model, tiny_tokenizer

MODEL = {"create": CREATE}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    write_data(tmp_path)
    return tmp_path


def loaded(path: Path) -> tuple[Config, Any, Data]:
    config = load_config(path)
    start = start_of(config)
    return config, start, load_data(config, start)


def plain_console(**settings: Any) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=200, markup=False, highlight=False, emoji=False, **settings), out


# --- the first batch --------------------------------------------------------------------------------------------------


class Asked:
    """An engine that notes which prompts it was to answer."""

    def __init__(self) -> None:
        self.keys: list[int] = []

    def generate(self, prompts: Any, n: int, sampling: Any, **_: Any) -> list[tuple[Completion, ...]]:
        self.keys += [p.key for p in prompts]
        return [tuple(Completion((5,), finish="stop") for _ in range(n)) for _ in prompts]


def test_the_first_batch_is_that_of_step_1(work: Path) -> None:
    """The rows and prompts that the run's own source takes, in their order."""
    mixed = online(
        work,
        model=MODEL,
        algorithm="gro",
        offline=[
            {"data": {"path": str(work / "sums.jsonl"), "stop": 40}, "weight": 2.0},
            {"data": {"path": str(work / "sums.jsonl"), "start": 40, "stop": 80}},
        ],
        offline_share=0.6,
        prompts_per_step=10,
        training={"steps": 2, "seed": 3},
    )
    config, start, data = loaded(mixed)
    algorithm, engine = build_algorithm(config), Asked()
    sampling = sampling_of(config, start.tokenizer, data.ends)
    taken = source_of(config, data, engine, None, sampling, algorithm, None).take(0)  # type: ignore[arg-type]
    first = first_batch(config, data, algorithm)
    known = [g.prompt.key for g in taken if g.completions[0].role == "target"]
    assert [row.group.prompt.key for row in first.rows] == known
    assert [group.prompt.key for group in first.prompts] == engine.keys
    assert len(known) == 6
    assert len(engine.keys) == 4


def test_weights_of_sft_are_one_over_the_tokens(work: Path) -> None:
    config, _, data = loaded(sft(work))
    first = first_batch(config, data, build_algorithm(config))
    tokens = sum(len(row.completion.ids) for row in first.rows)
    assert len(first.rows) == 16
    assert first.trained == tokens
    assert first.stance == "", "whatever the policy"
    for row in first.rows:
        assert row.weights == pytest.approx([1 / tokens] * len(row.completion.ids))


def test_weights_of_dpo_are_half_beta_over_the_pairs(work: Path) -> None:
    """With policy = reference the sigmoid is ½; of the first of two minibatches, which has two of the four pairs."""
    path = dpo(work, model=MODEL, algorithm={"name": "dpo", "beta": 0.3}, training={"steps": 1, "minibatches": 2})
    config, _, data = loaded(path)
    first = first_batch(config, data, build_algorithm(config))
    assert len(first.rows) == 4
    for row in first.rows:
        assert row.completion.reward is not None
        expected = row.completion.reward * 0.3 / 2 / 2
        assert row.weights == pytest.approx([expected] * len(row.completion.ids))


def test_weights_without_a_reference_or_a_value_at_certainty_are_finite(work: Path) -> None:
    """Log odds are infinite where every token is certain; then all are equally likely instead."""
    config, _, data = loaded(dpo(work, model=MODEL, algorithm="orpo"))
    first = first_batch(config, data, build_algorithm(config))
    assert "equally likely" in first.stance
    signs = {(row.completion.reward, w > 0) for row in first.rows for w in row.weights or ()}
    assert signs == {(1.0, True), (-1.0, False)}


def test_a_reward_model_scores_behind_the_last_token(work: Path) -> None:
    config, _, data = loaded(dpo(work, model=MODEL, algorithm="bradley_terry"))
    first = first_batch(config, data, build_algorithm(config))
    for row in first.rows:
        assert row.weights is not None
        assert row.weights[:-1] == (0.0,) * len(row.completion.ids)
        assert row.weights[-1] == pytest.approx((row.completion.reward or 0) * 0.5 / 4)


def group(key: int, text: str, *completions: Completion) -> Group:
    return Group(Prompt(tuple(tiny_tokenizer()(text)["input_ids"]), key=key), completions)


def said(text: str, **fields: Any) -> Completion:
    return Completion(tuple(tiny_tokenizer()(text)["input_ids"]), **fields)


def test_what_is_learnt_without_colour() -> None:
    """A line per run of equal weights; nothing that the data say begins a line or acts on the terminal."""
    good, evil = said("yes now", reward=1.0), said("\n  [+9]\x1b[2J", reward=-1.0)
    half = tuple(i < 2 for i in range(len(good.ids)))
    good = replace(good, trained=half)
    pair = group(6, "hostile\x1b[31m\n  [+1] x", good, evil)
    weights = [tuple(0.125 if on else 0.0 for on in half), (-0.125,) * len(evil.ids)]
    console, out = plain_console()
    show_batch(
        console, tiny_tokenizer(), First(tuple(Row(pair, c, w) for c, w in zip((good, evil), weights, strict=True)))
    )
    lines = out.getvalue().splitlines()
    head = tiny_tokenizer().decode(list(good.ids[:2]))
    tail = tiny_tokenizer().decode(list(good.ids[2:]))
    assert lines[1:] == [
        "row 7",
        "  prompt       hostile\\x1b[31m⏎  [+1] x",
        "  completion, reward 1",
        f"  [+0.125]     {head}",
        f"  [not learnt] {tail}",
        "  completion, reward -1",
        "  [-0.125]     ⏎  [+9]\\x1b[2J",
    ]


def test_what_is_learnt_in_colour() -> None:
    """Green up, red down, the brighter the stronger; what is not learnt is grey."""
    strong, weak, down = said("aa", reward=1.0), said("bb", reward=1.0), said("cc", reward=-1.0)
    masked = said("dd", reward=1.0)
    masked = replace(masked, trained=(False,) * len(masked.ids))
    rows = zip((strong, weak, down, masked), (0.5, 0.1, -0.5, 0.0), strict=True)
    shown = group(0, "p", strong, weak, down, masked)
    console, out = plain_console(force_terminal=True, color_system="truecolor")
    show_batch(console, tiny_tokenizer(), First(tuple(Row(shown, c, (w,) * len(c.ids)) for c, w in rows)))
    text = out.getvalue()
    assert "\x1b[38;2;60;255;60maa" in text
    assert "\x1b[38;2;60;139;60mbb" in text  # 110 + 145 · 0.1 / 0.5
    assert "\x1b[38;2;255;60;60mcc" in text
    assert "\x1b[90mdd" in text


def test_long_completions_are_cut_in_the_middle() -> None:
    long = said("0123456789" * 30)
    console, out = plain_console()
    show_batch(console, tiny_tokenizer(), First((Row(group(0, "p", long), long, (0.5,) * len(long.ids)),)))
    hidden = len(long.ids) - 48 - 24
    assert f"  … {hidden} tokens …" in out.getvalue().splitlines()
    shown = "".join(line[15:] for line in out.getvalue().splitlines() if line.startswith("  [+0.5]"))
    kept = (*long.ids[:48], *long.ids[-24:])
    assert shown == tiny_tokenizer().decode(list(kept))


# --- beginnings and ends ----------------------------------------------------------------------------------------------


def dataset(path: Path, rows: list[dict[str, Any]], **settings: Any) -> Dataset:
    return load_dataset(DataSpec(str(write_rows(path, rows)), **settings), tiny_tokenizer())


def ended(data: Data, stops: tuple[int, ...] | None = None, own: tuple[int, ...] = (2,)) -> str:
    from gro.assemble import Start
    from gro.engines.base import Sampling

    console, out = plain_console()
    tokenizer = tiny_tokenizer()
    start = Start(None, tokenizer, None, own)
    sampling = None if stops is None else Sampling(stop_ids=stops)
    check_endings(console, data, start, sampling, full=True)
    return out.getvalue()


@pytest.mark.fault("D7")
def test_completions_that_never_end_are_refused(tmp_path: Path) -> None:
    rows = [{"prompt": "hello", "completion": " world, how are you"} for _ in range(3)]
    rows += [{"prompt": "hello", "completion": " a"}] * 2
    some = dataset(tmp_path / "some.jsonl", rows, max_length=8, overlong="truncate")
    text = ended(Data(offline=((some, 1.0),)))
    assert "offline: 2 of 5 completions end in <|im_end|>; 3 are cut at max_length" in text
    none = dataset(tmp_path / "none.jsonl", rows[:3], max_length=8, overlong="truncate")
    with pytest.raises(GroError, match=r"none of its 3 completions ends in an end token that is learnt \(<\|im_end\|>"):
        ended(Data(offline=((none, 1.0),)))


@pytest.mark.fault("D7")
def test_training_and_sampling_have_the_same_end(tmp_path: Path) -> None:
    rows = dataset(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}])
    data = Data(offline=((rows, 1.0),))
    assert "note" not in ended(data, (2,))
    assert "note: no completion that is learnt ends in <|im_start|>" in ended(data, (1, 2))
    with pytest.raises(GroError, match=r"end in <\|im_end\|>, at which sampling does not stop"):
        ended(data, (1,))


@pytest.mark.fault("D7")
@pytest.mark.parametrize("stops", [None, (2,)])
def test_an_end_that_other_programs_do_not_know_is_told(tmp_path: Path, stops: tuple[int, ...] | None) -> None:
    """Where completions are learnt, and where they are only sampled."""
    rows = [{"prompt": "a"} if stops else {"prompt": "a", "completion": "b"}]
    data = Data(offline=((dataset(tmp_path / "rows.jsonl", rows), 1.0),))
    told = "note: completions end in <|im_end|>, which is no end token by the model's own files"
    assert told in ended(data, stops, own=())
    assert told not in ended(data, stops)


@pytest.mark.fault("D8")
def test_rows_that_begin_twice_are_refused(tmp_path: Path) -> None:
    """A user's own text that spells the beginning out where the tokenizer writes none is one beginning, and not two."""
    twice = [{"prompt": "ok", "completion": "x"}, {"prompt": "<|endoftext|><|endoftext|>ok", "completion": "x"}]
    rows = dataset(tmp_path / "rows.jsonl", twice, special_tokens="control")
    with pytest.raises(GroError, match=r"offline: 1 rows begin with <\|endoftext\|> twice \(the first: row 2 of"):
        ended(Data(offline=((rows, 1.0),)))
    once = dataset(tmp_path / "once.jsonl", twice, special_tokens="text")
    assert "1 rows" not in ended(Data(offline=((once, 1.0),)))


@pytest.mark.fault("D6")
def test_prompts_without_room_for_an_answer_are_refused(work: Path) -> None:
    rows = [{"prompt": "1+1=", "completion": "2"}, {"prompt": "9" * 40, "completion": "x"}]
    write_rows(work / "long.jsonl", rows)
    for overlong in ("refuse", "truncate"):
        data = {"path": str(work / "long.jsonl"), "max_length": 16, "overlong": overlong}
        done = cli("check", sft(work, offline=data))
        assert done.code == 2
        assert "line 2, field 'prompt': found 40 prompt tokens" in done.err
        assert "The prompt alone leaves no token to train on" in done.err
        assert "1 of 2 rows cannot be used" in done.err


def test_a_conversation_is_shown_as_rendered(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi\x1b[2J"}, {"role": "assistant", "content": "yes"}]
    text = ended(Data(offline=((dataset(tmp_path / "rows.jsonl", [{"messages": turns}]), 1.0),)))
    assert "offline: the tokenizer's chat template, sha256 " in text
    assert "<|im_start|>user⏎hi\\x1b[2J<|im_end|>⏎<|im_start|>assistant⏎yes<|im_end|>" in text


# --- memory -----------------------------------------------------------------------------------------------------------


def really(model: torch.nn.Module) -> tuple[int, int, int]:
    """Bytes of weights, gradients and optimizer after one real step."""
    weights = dict(model.named_parameters())
    descent = Descent(weights, Optimization(), total_updates=1)
    for p in weights.values():
        p.grad = torch.ones_like(p)
    gradients = sum(p.grad.nbytes for p in weights.values() if p.grad is not None)
    descent.step()
    state = [t for kept in descent.optimizer.state.values() for t in kept.values() if isinstance(t, Tensor)]
    return sum(p.nbytes for p in weights.values()), gradients, sum(t.nbytes for t in state)


@pytest.mark.parametrize(
    ("arch", "dtype", "more"),
    [
        ("qwen3", "float32", {"tie_word_embeddings": True}),
        ("llama", "bfloat16", {"tie_word_embeddings": False}),
        ("gpt2", "float32", {}),
    ],
)
def test_weights_gradients_and_optimizer_are_counted_exactly(arch: str, dtype: str, more: dict[str, Any]) -> None:
    model = tiny_model(arch, dtype=getattr(torch, dtype), **more)
    found = sizes(model.config, dtype).whole
    assert (found.weights, found.gradients, found.optimizer) == really(model)
    assert found.parameters == sum(p.numel() for p in model.parameters())


def test_an_adapter_is_counted_exactly() -> None:
    pytest.importorskip("peft")
    from gro.policy import adapter

    model, settings = tiny_model("qwen3"), LoraSettings(rank=3, targets=("q_proj", "down_proj"))
    found = sizes(model.config, lora=settings)
    adapter.attach(model, adapter.configure(model, settings), seed=0)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert found.trained.parameters == sum(p.numel() for p in trained)
    assert found.trained.weights == sum(p.nbytes for p in trained)
    assert found.whole.gradients == 0


@pytest.mark.parametrize("arch", ["qwen3", "gemma2", "gpt2"])
def test_what_a_pass_keeps_is_what_a_real_pass_keeps(arch: str) -> None:
    """Every piece of memory that is saved for the backward pass, below the head, in a real packed stream."""
    policy = Policy(tiny_model(arch), tiny_tokenizer(), layout="shared")
    known = {p.untyped_storage().data_ptr() for p in (*policy.model.parameters(), *policy.model.buffers())}
    kept: dict[int, Any] = {}
    groups = [Group(Prompt((1,) * 60), (Completion((2,) * 70), Completion((3,) * 50)))]
    (pack,) = policy.packs(groups, 1000)

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        hidden = policy.hidden(pack)
    real = sum(storage.nbytes() for storage in kept.values())
    assert hidden.requires_grad
    assert sizes(policy.model.config).per_token * pack.tokens == pytest.approx(real, rel=0.03)


def test_the_cache_of_a_token(work: Path) -> None:
    """One layer, one key head of 16: keys and values in float32."""
    config, start, _ = loaded(sft(work))
    assert config.model.create is not None
    assert sizes(start.architecture).cache_per_token == 2 * 16 * 4


def test_tokens_of_the_largest_micro_batch(work: Path) -> None:
    """All of a step where it fits, else the budget, but never less than the longest row."""
    config, _, data = loaded(sft(work))
    lengths = sorted((n + sum(c) for n, c in data.offline[0][0].lengths()), reverse=True)
    algorithm = build_algorithm(config)
    assert micro_tokens(config, data, algorithm) == sum(lengths[:16])

    def budget(tokens: int) -> int:
        portions = replace(config.training, tokens_per_micro=tokens)
        return micro_tokens(config.model_copy(update={"training": portions}), data, algorithm)

    assert budget(50) == 50
    assert budget(1) == lengths[0]
    rolled, _, prompts = loaded(online(work, model=MODEL, prompts_per_step=2))
    longest = max(n for n, _ in prompts.online.lengths()) if prompts.online else 0
    assert micro_tokens(rolled, prompts, build_algorithm(rolled)) == 2 * (longest + 4 * 3)


def test_parts_of_ppo(work: Path) -> None:
    """A critic of its own and its optimizer, a reference, gradients of one of the two at a time."""
    config, start, data = loaded(online(work, model=MODEL, algorithm="ppo"))
    found = needs(config, start, data)
    parts, model = {part.name: part.bytes for part in found.memory.parts}, found.policy.whole
    head = 4 * (32 + 1)
    assert parts["reference"] == model.weights
    assert parts["critic"] == model.weights + head  # tied: the trunk is all of the model
    assert parts["critic's optimizer"] == model.optimizer + 2 * head + 8
    assert parts["gradients"] == model.gradients + head
    assert found.memory.peak == max(found.memory.total("learning"), found.memory.total("sampling"))
    halves = {part.name: part.bytes for part in needs(config, start, data, shards=2).memory.parts}
    assert halves["critic"] == -(-parts["critic"] // 2)
    assert halves["activations"] == parts["activations"]


def test_models_that_reward_are_counted_also_behind_simulated_people(work: Path) -> None:
    assert cli("train", sft(work, training={"steps": 1})).code == 0
    path = str(work / "sft")
    model = {"reward": "reward_model", "path": path}
    people = {"reward": "human", "simulated": {"reward": model, "low": -1}}
    for rewards in ([model], [people]):
        config, start, data = loaded(online(work, rewards=rewards))
        found = needs(config, start, data)
        parts = {part.name: part.bytes for part in found.memory.parts}
        assert parts[f"reward_model {path}"] == found.policy.trunk.weights


def test_too_little_memory_names_the_largest_knob(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, start, data = loaded(sft(work))
    found = needs(config, start, data)
    console, out = plain_console()
    tight = Machine("cpu", total=10 * found.memory.peak, free=found.memory.peak - 1)
    check_memory(console, replace(found, machine=tight))
    assert "note: that is more than is free. The largest part that can be made smaller: the backward pass" in (
        " ".join(out.getvalue().split())
    )
    assert "training.tokens_per_micro" in out.getvalue()
    counted = found.memory.counted
    with pytest.raises(GroError, match="weights, gradients, optimizer and what stands beside them take"):
        check_memory(console, replace(found, machine=Machine("cpu", total=counted - 1, free=0)))
    check_memory(console, replace(found, machine=Machine("cpu", total=counted, free=counted)))
    monkeypatch.setattr(estimate, "machine", lambda device: Machine("cpu", total=1000, free=10))
    done = cli("check", sft(work))
    assert done.code == 2
    assert "cpu has 1000 bytes" in done.err


def test_the_containers_limit_counts(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    assert machines._limit(tmp_path) is None
    (tmp_path / "memory.max").write_text("12345\n")
    assert machines._limit(tmp_path) == 12345
    assert machines._limit(tmp_path / "nowhere") is None


# --- disk -------------------------------------------------------------------------------------------------------------


def test_what_a_run_writes(work: Path) -> None:
    """Exported models, three states (two kept, one being written), the start, and 64 MiB for all else."""
    config, start, data = loaded(sft(work, training={"steps": 7, "save_every": 3}))
    found = needs(config, start, data)
    model, disk = found.policy.whole, found.disk
    assert disk.models == 3
    assert disk.model == model.weights + found.policy.buffers
    assert disk.state == model.weights + model.optimizer
    state = 3 * (model.weights + model.optimizer)
    assert disk.needed == 3 * disk.model + state + model.weights + 64 * 2**20


@pytest.mark.fault("C5")
def test_a_disk_that_is_too_small_is_refused(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(work / "run", model=100, models=2, state=300, states=3)
    monkeypatch.setattr(files, "free_bytes", lambda path: disk.needed)
    refuse_without_room(disk)
    monkeypatch.setattr(files, "free_bytes", lambda path: disk.needed - 1)
    with pytest.raises(GroError, match=r"2 × 100 bytes of exported models, 3 × 300 bytes of states.*save_every"):
        refuse_without_room(disk)
    (work / "run" / "state" / "step-1").mkdir(parents=True)
    (work / "run" / "state" / "step-1" / "weights").write_bytes(b"x")
    refuse_without_room(disk)  # what is there already need not be written again
    monkeypatch.setattr(files, "free_bytes", lambda path: 1000)
    done = cli("check", sft(work))
    assert done.code == 2
    assert "the disk has 1000 bytes free and the run needs 65.1 MiB more" in done.err


@pytest.mark.fault("C5")
def test_directories_that_cannot_hold_a_run(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(run: Path) -> str | None:
        return check_directory(load_config(sft(work), [f"run={run}"]))

    assert told(work / "new" / "deep") is None
    assert not (work / "new").exists(), "nothing is written"
    (work / "file").write_text("x")
    for run in (work / "file", work / "file" / "below"):
        with pytest.raises(GroError, match="is not a directory"):
            told(run)
    (work / "other").mkdir()
    (work / "other" / "thesis.tex").write_text("x")
    with pytest.raises(GroError, match=r"not empty and holds no run \(thesis.tex\)"):
        told(work / "other")
    monkeypatch.setattr("gro.preflight.disk.os.access", lambda *_: False)
    with pytest.raises(GroError, match="is read-only for this user"):
        told(work / "new")
    assert cli("check", sft(work, run=str(work / "new"))).code == 2


@pytest.mark.fault("C5")
def test_a_finished_run_is_told(work: Path) -> None:
    from gro.runs.store import Run

    config = load_config(sft(work))
    with Run.open(config.run, config.resolved()) as run:
        assert "not finished; the same command continues it (it is running now" in (check_directory(config) or "")
        run.finish()
    assert "nothing is left to do" in (check_directory(config) or "")
    with pytest.raises(GroError, match=r"a finished run of another recipe: prompts_per_step: 16 → 3"):
        check_directory(load_config(sft(work, prompts_per_step=3)))


# --- all together -----------------------------------------------------------------------------------------------------


def test_a_run_says_the_same_in_short(work: Path) -> None:
    """What precedes a run has the lines of the check, without those for people who look; rewards are opened once."""
    path = sft(work)
    config, start, data = loaded(path)
    console, out = plain_console()
    opened: list[Any] = []

    def open_rewards(specs: Any) -> Any:
        from gro.assemble import rewards_of

        opened.append(rewards_of(config, specs, start.tokenizer))
        return opened[-1]

    found = preflight(config, start, data, console, open_rewards=open_rewards)
    assert found.rewards == {"rewards": opened[0]}
    opened[0].close()
    short = [line for line in out.getvalue().splitlines() if not line.startswith(("memory:", "disk:", "rewards:"))]
    full = cli("check", path).out.splitlines()
    assert set(short) <= set(full)
    assert not any(line.startswith("the first batch") for line in short)
    assert [g.prompt.key for g in found.held_out] == list(range(80, 88))
    assert found.sampling.stop_ids == tuple(sorted(data.ends))
    for what in ("memory: about", "disk: ", "rewards: exact_match of 4 texts", "offline: 80 of 80 completions end in"):
        assert any(line.startswith(what) for line in out.getvalue().splitlines())


def test_rewards_are_shown_with_the_texts(work: Path) -> None:
    done = cli("check", sft(work))
    assert "  '8<|im_end|>': exact_match 1; together 1" in done.out.splitlines()


@pytest.mark.parametrize("command", ["check", "train"])
def test_models_that_are_not_there_are_named_by_their_key(command: str, work: Path) -> None:
    there = {"model": MODEL, "online": {"path": str(work / "sums.jsonl")}}
    nowhere = str(work / "nowhere" / "at" / "all")
    judged = {
        "rewards": [{"reward": "exact_match", "column": "completion"}, {"reward": "reward_model", "path": nowhere}]
    }
    for key, keys in {"rewards.1": judged, "critic.path": {"critic": {"path": nowhere}}}.items():
        path = recipe(work / "r.yaml", **({"algorithm": "ppo", "rewards": judged["rewards"][:1]} | there | keys))
        done = cli(command, path)
        assert done.code == 2
        assert f"error: {key}: {nowhere} does not exist" in done.err


def test_the_summary(work: Path) -> None:
    done = cli(
        "check", recipe(work / "r.yaml", model=MODEL, algorithm="sft", offline={"path": str(work / "sums.jsonl")})
    )
    assert done.code == 0, done.err
    rows = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in done.out.splitlines() if "│" in line}
    assert rows["offline"] == "100 of 100 rows, prompt_completion"
    assert rows["model"] == "25,088 parameters, all of them learnt"
    assert rows["rewards"] == "none"
    assert done.out.splitlines()[-1] == "the recipe is sound"
    assert json.loads((work / "sums.jsonl").read_text().splitlines()[0])["prompt"] == "0+0="
