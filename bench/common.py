"""What both sides of the comparison share: the model, the data, the turn-taking, and how memory is read.

Runs in gro's environment and in TRL's, so it imports neither, and torch and transformers only inside functions.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"

VOCABULARY = 16384
MAX_LENGTH = 1024
"""Pairs whose prompt + completion is longer are left out (and counted), so that neither side truncates."""
GROUP_SIZE = 8
NEW_TOKENS = 128
PROMPTS_PER_STEP = 4
PAIRS_PER_STEP = 8


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is told to do; travels as JSON on its command line."""

    kind: Literal["dpo", "grpo"]
    model: str
    """Folder of the starting weights and the tokenizer, Hugging Face format."""
    data: str
    """JSONL: prompt, chosen, rejected (dpo) or prompt (grpo)."""
    steps: int
    learning_rate: float
    seed: int = 0
    threads: int = 2
    dump: str | None = None
    """Where to write what was sampled (grpo): one JSON line per step."""
    options: dict[str, Any] = field(default_factory=dict)
    """TRL: overrides of its best known configuration.  gro: `training` keys, or `replay`, a peer's dump."""

    def to_json(self) -> str:
        """As `from_json` reads it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Inverse of `to_json`."""
        return cls(**json.loads(text))


class Turns:
    """A worker's side of taking turns: it works only between `go` and its next report, so that both libraries stay
    loaded and alternate step by step under the same conditions.

    One JSON object per line on what was the worker's standard output; anything the libraries print goes to stderr.
    """

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._began: tuple[float, float] | None = None
        self._record: dict[str, Any] = {}

    def ready(self, **facts: Any) -> None:
        """Everything is loaded; `facts` are printed and compared by the orchestrator."""
        self._send("ready", rss=peak_rss(), **facts)

    def begin(self) -> None:
        """Reports the step before, if there was one, and waits for this worker's turn."""
        self.end()
        if sys.stdin.readline().strip() != "go":
            sys.exit("the orchestrator is gone")
        self._began = _now()

    def stop_clock(self) -> None:
        """The step's work is done; what follows until the next `begin` is bookkeeping."""
        assert self._began is not None, "a step ended that had not begun"
        self._note_since(self._began, "")

    @contextmanager
    def clock(self, part: str) -> Iterator[None]:
        """Measures a part of the step."""
        began = _now()
        yield
        self._note_since(began, part + "_")

    def note(self, **values: Any) -> None:
        """Adds to the report of the current step."""
        self._record.update(values)

    def end(self) -> None:
        """Reports the current step, if there is one."""
        if self._began is not None:
            assert "seconds" in self._record, "a step was reported whose clock still runs"
            self._send("step", peak_rss=peak_rss(), **self._record)
        self._began, self._record = None, {}

    def done(self, **facts: Any) -> None:
        """The last message."""
        self.end()
        self._send("done", peak_rss=peak_rss(), **facts)

    def _note_since(self, began: tuple[float, float], prefix: str) -> None:
        wall, cpu = (now - then for now, then in zip(_now(), began, strict=True))
        self.note(**{f"{prefix}seconds": wall, f"{prefix}cpu_seconds": cpu})

    def _send(self, event: str, **values: Any) -> None:
        print(json.dumps({"event": event, **values}), file=self._out, flush=True)


def _now() -> tuple[float, float]:
    """Wall time, and processor time of all threads: what work costs even when other programs share the machine."""
    return time.perf_counter(), time.process_time()


def peak_rss() -> int:
    """Bytes of the largest resident set of this process, and of those of its children that live (reward workers).

    Not getrusage: its figure includes the parent's size at the moment of fork.
    """
    peaks: dict[int, int] = {}
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        except OSError:  # it ended meanwhile
            continue
        peaks[int(folder.name)] = int(status.get("VmHWM", "0 kB").split()[0]) * 1024
        children.setdefault(int(status["PPid"]), []).append(int(folder.name))
    total, waiting = 0, [os.getpid()]
    while waiting:
        process = waiting.pop()
        total += peaks[process]
        waiting += children.get(process, [])
    return total


def digest(rows: Iterable[Sequence[Sequence[int]]]) -> dict[str, Any]:
    """Counts and a hash of token ids, so that two processes can prove that they read the same.

    rows: per example a few sequences of ids, e.g. prompt, chosen, rejected.
    """
    hasher = hashlib.sha256()
    count, lengths = 0, []
    for row in rows:
        count += 1
        hasher.update(json.dumps([list(map(int, ids)) for ids in row]).encode())
        lengths.append([len(ids) for ids in row])
    return {
        "rows": count,
        "tokens": [sum(column) for column in zip(*lengths, strict=True)],
        "sha256": hasher.hexdigest(),
    }


def data_folder() -> Path:
    """Where the real data lies: `$GRO_DATA`, or `shared/data` beside or in the checkout.

    Raises:
        SystemExit: it is nowhere; the message says what is looked for and where.
    """
    folders = [Path(p) for p in (os.environ.get("GRO_DATA"),) if p]
    folders += [ROOT.parent / "shared" / "data", ROOT / "shared" / "data"]
    for folder in folders:
        if (folder / "hh_harmless.jsonl").exists() and (folder / "gsm8k.jsonl").exists():
            return folder
    looked = ", ".join(map(str, folders))
    sys.exit(f"no benchmark data: set GRO_DATA to a folder with hh_harmless.jsonl and gsm8k.jsonl (looked in {looked})")


def read_jsonl(path: Path | str) -> list[dict[str, Any]]:
    """All rows."""
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write_jsonl(path: Path | str, rows: Iterable[dict[str, Any]]) -> None:
    """One row a line."""
    with open(path, "w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


def split_transcript(chosen: str, rejected: str) -> dict[str, str] | None:
    """An HH pair as prompt (through the last "Assistant:"), chosen and rejected; None where the prompts differ."""
    marker = "\n\nAssistant:"
    at = chosen.rfind(marker)
    prompt = chosen[: at + len(marker)]
    if at < 0 or not rejected.startswith(prompt) or marker in rejected[len(prompt) :]:
        return None
    row = {"prompt": prompt, "chosen": chosen[len(prompt) :], "rejected": rejected[len(prompt) :]}
    return row if row["chosen"] and row["rejected"] else None


def build_model(folder: Path, data: Path, embeddings: int | None = None) -> Path:
    """The 15.7M-parameter Qwen3 of the comparison with random weights, and a byte-level BPE of 16k made from the data.

    embeddings: instead, two thin layers (hidden 64) under an embedding with so many rows, most of them for tokens that
    no text has: a model whose memory is its output layer.

    Kept from run to run: both sides start from these files.  Needs gro, so it runs in gro's environment only.
    """
    if (folder / "model.safetensors").exists():
        return folder
    from gro.policy.create import create_model, train_tokenizer
    from gro.policy.spec import CreateSpec

    texts = [text for row in read_jsonl(data / "hh_harmless.jsonl") for text in (row["chosen"], row["rejected"])]
    texts += [text for row in read_jsonl(data / "gsm8k.jsonl") for text in (row["question"], row["answer"])]
    spec = CreateSpec(vocab_size=VOCABULARY)
    if embeddings is not None:
        spec = CreateSpec(vocab_size=embeddings, hidden_size=64, layers=2, heads=2, kv_heads=1)
    return create_model(spec, train_tokenizer(texts, VOCABULARY), folder)


def pairs(data: Path, model: Path, steps: int) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The first HH pairs in file order that neither side would truncate, and what was taken and left out."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    rows: list[dict[str, Any]] = []
    too_long = f"over {MAX_LENGTH} tokens"
    counts = {"taken": 0, "prompts differ": 0, too_long: 0}
    for raw in read_jsonl(data / "hh_harmless.jsonl"):
        row = split_transcript(raw["chosen"], raw["rejected"])
        if row is None:
            counts["prompts differ"] += 1
        elif any(len(tokenizer(row["prompt"] + row[k]).input_ids) >= MAX_LENGTH for k in ("chosen", "rejected")):
            counts[too_long] += 1
        else:
            rows.append(row)
            if len(rows) == steps * PAIRS_PER_STEP:
                return rows, counts | {"taken": len(rows)}
    sys.exit(f"{steps} steps need {steps * PAIRS_PER_STEP} pairs; the data has {len(rows)}")


def prompts(data: Path, steps: int) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The first GSM8K questions in file order as prompts, and how many."""
    raws = read_jsonl(data / "gsm8k.jsonl")[: steps * PROMPTS_PER_STEP]
    rows = [{"prompt": f"Question: {raw['question']}\nAnswer:"} for raw in raws]
    return rows, {"taken": len(rows)}
