"""What needs a model before there is something to label: fresh samples, and how sure a reward model is.

It runs in a process of its own, `python -m gro.web.label.material`, that has ended when the server starts: the server
holds no model, and never imports torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gro.errors import GroError
from gro.labels.items import Item

if TYPE_CHECKING:
    from gro.web.label.command import Asked


def sampled(asked: Asked) -> Path:
    """Samples n answers to each prompt of the file into `….samples.jsonl` beside the labels, and returns that."""
    output = asked.labels.with_suffix(".samples.jsonl")
    n = asked.n or 2
    print(f"sampling {n} answers to each prompt of {asked.data} from {asked.model}")
    _elsewhere(
        "samples",
        model=asked.model,
        data=str(asked.data),
        n=n,
        limit=asked.limit,
        temperature=asked.temperature or 1.0,
        max_new_tokens=asked.max_new_tokens or 256,
        seed=asked.seed,
        output=str(output),
    )
    print(output)
    return output


def least_certain_first(reward_model: Path, items: Sequence[Item]) -> dict[str, float]:
    """A place for each item by the gap between its two highest scores, the smallest gap first."""
    if not items:
        raise GroError("--reward-model orders the rows of a file: give it")
    print(f"scoring {len(items)} items with {reward_model}")
    with tempfile.TemporaryDirectory() as folder:
        rows, output = Path(folder) / "items.jsonl", Path(folder) / "gaps.json"
        texts = ({"prompt": item.prompt, "completions": item.completions} for item in items)
        rows.write_text("".join(json.dumps(row) + "\n" for row in texts), encoding="utf-8")
        _elsewhere("gaps", model=str(reward_model), data=str(rows), output=str(output))
        gaps: list[float] = json.loads(output.read_text(encoding="utf-8"))
    if len(gaps) != len(items):
        raise GroError(f"{reward_model} scored {len(gaps)} of {len(items)} items")
    order = sorted(range(len(items)), key=gaps.__getitem__)
    return {items[i].id: float(place) for place, i in enumerate(order)}


def _elsewhere(what: str, **settings: Any) -> None:
    """Runs it in a process of its own; its error is ours."""
    command = [sys.executable, "-m", "gro.web.label.material", what]
    done = subprocess.run(command, input=json.dumps(settings), text=True, stderr=subprocess.PIPE, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise GroError("\n".join(lines[-12:]).removeprefix("error: "))


def _samples(settings: dict[str, Any]) -> None:
    from gro.data.files import read_rows
    from gro.data.layout import detect
    from gro.data.rows import parse_row
    from gro.data.spec import DataSpec
    from gro.jobs.generate import Asked, generate_texts
    from gro.runs import files
    from gro.web.label.rows import spoken

    model, output, n = settings.pop("model"), Path(settings.pop("output")), settings["n"]
    answers = [found.text for found in generate_texts(model, Asked(**settings))]
    prompts: list[Any] = []
    for index, row in enumerate(read_rows(settings["data"])):
        if len(prompts) * n == len(answers):
            break
        layout = detect(row.fields, DataSpec(settings["data"], kind="prompt_only"))
        prompts.append(spoken(parse_row(row, index, layout).prompt or ()))
    assert len(prompts) * n == len(answers), "a row gave no prompt, and was not refused"
    rows = []
    for i, prompt in enumerate(prompts):
        texts = [text for text in answers[i * n : (i + 1) * n] if text.strip()]  # an empty answer cannot be read back
        chat = isinstance(prompt, list)
        completions = [[{"role": "assistant", "content": text}] if chat else text for text in texts]
        rows.append({"prompt": prompt, "completions": completions})
    rows = [row for row in rows if row["completions"]]
    if not rows:
        raise GroError(f"{model} gave only empty answers")
    files.write_text(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _gaps(settings: dict[str, Any]) -> None:
    from gro.assemble import model_folder
    from gro.data.encode import load_dataset
    from gro.data.spec import DataSpec
    from gro.policy.reward_model import RewardModel

    model = RewardModel.read(model_folder(settings["model"]))
    groups = list(load_dataset(DataSpec(settings["data"], kind="rewarded"), model.tokenizer))
    scores, gaps = iter(model.scores(groups, 16384).tolist()), []
    for group in groups:
        best = sorted((next(scores) for _ in group.completions), reverse=True)
        gaps.append(best[0] - best[1] if len(best) > 1 else 0.0)
    Path(settings["output"]).write_text(json.dumps(gaps), encoding="utf-8")


def main() -> None:
    """What the process does: settings come as JSON on the standard input."""
    try:
        {"samples": _samples, "gaps": _gaps}[sys.argv[1]](json.load(sys.stdin))
    except GroError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
