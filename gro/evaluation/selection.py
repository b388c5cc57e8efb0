"""Samples selected by reward, as rows of a data set that the data loader reads back.

    sft          {prompt, completion, score}                                    the best sample
    preference   {prompt, chosen, rejected, chosen_reward, rejected_reward}     the best and the worst; ties are skipped
    rewarded     {prompt, completions, rewards}                                 all of them

A file of text cannot say everything about a sample: every completion that is read from one ends in an end token, and
names of special tokens in it are text.  Samples of which that would not be true are left out, and counted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from gro.data.dataset import Dataset
from gro.data.encode import encode_prompts
from gro.errors import GroError
from gro.evaluation.best_of_n import best, worst
from gro.types import Completion, Group

Form = Literal["sft", "preference", "rewarded"]


def parse_form(text: str) -> Form:
    """Raises GroError for anything but a form."""
    for form in get_args(Form):
        if text == form:
            return form
    raise GroError(f"--as is one of {', '.join(get_args(Form))}; found {text!r}")


@dataclass(frozen=True, slots=True)
class Selection:
    """Rows to be written, and what is not among them."""

    rows: list[dict[str, Any]]
    samples_left_out: Counter[str] = field(default_factory=Counter)
    """How many, by the reason."""
    prompts_left_out: Counter[str] = field(default_factory=Counter)

    def json_lines(self) -> str:
        """The rows as a file holds them."""
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)


@dataclass(frozen=True, slots=True)
class _Sample:
    text: str
    reward: float


@dataclass(frozen=True, slots=True)
class Writer:
    """Makes rows of scored groups.

    >>> Writer("sft", decode=tokenizer_decode, special_ids={0, 1, 2}).rows(groups)
    """

    form: Form
    decode: Callable[[Sequence[int]], str]
    """Token ids to text, special tokens left out."""
    special_ids: Collection[int]

    def select(self, groups: Sequence[Group]) -> Selection:
        """The rows of these groups, whose prompts carry as `row["prompt"]` how they were presented."""
        found = Selection([])
        for group in groups:
            samples = []
            for completion in group.completions:
                why = self.unwritable(completion)
                if why is not None or completion.reward is None:
                    found.samples_left_out[why or "without a reward"] += 1
                else:
                    samples.append(_Sample(self.decode(completion.ids), completion.reward))
            row = self.row(group.prompt.row["prompt"], samples)
            if isinstance(row, str):
                found.prompts_left_out[row] += 1
            else:
                found.rows.append(row)
        return found

    def unwritable(self, completion: Completion) -> str | None:
        """Why its text alone would be read as something else; None where it can be written."""
        if completion.finish == "length":
            return "cut off"
        if any(i in self.special_ids for i in completion.ids[:-1]):
            return "with special tokens inside"
        text = self.decode(completion.ids)
        if not text.strip() or "\0" in text:
            return "without text"
        return "not valid UTF-8" if "\ufffd" in text else None

    def row(self, prompt: Any, samples: Sequence[_Sample]) -> dict[str, Any] | str:
        """The row of one prompt, or why there is none."""
        rewards = [sample.reward for sample in samples]
        first, last = best(rewards), worst(rewards)
        if first is None or last is None:
            return "no sample that can be written"
        said = [sample.text if isinstance(prompt, str) else _turn(sample.text) for sample in samples]
        if self.form == "rewarded":
            return {"prompt": prompt, "completions": said, "rewards": rewards}
        if self.form == "sft":
            return {"prompt": prompt, "completion": said[first], "score": rewards[first]}
        if rewards[first] == rewards[last]:
            return "all rewards equal"
        if samples[first].text.strip() == samples[last].text.strip():
            return "best and worst of the same text"
        return {
            "prompt": prompt,
            "chosen": said[first],
            "rejected": said[last],
            "chosen_reward": rewards[first],
            "rejected_reward": rewards[last],
        }


def check_presentable(prompts: Dataset, tokenizer: Any) -> None:
    """Raises GroError where a prompt, written as it was presented, would be read back as other tokens.

    So it is with special tokens that a prompt template spells out: in a file they would be text.
    """
    again = encode_prompts([group.prompt.row["prompt"] for group in prompts], tokenizer, end_ids=prompts.ends)
    for group, read in zip(prompts, again, strict=True):
        if group.prompt.ids != read.prompt.ids:
            raise GroError(
                f"--output: row {group.prompt.key + 1} of {prompts.spec.paths[0]} cannot be written as text: read "
                f"back, its prompt would be {len(read.prompt.ids)} tokens that are not the {len(group.prompt.ids)} "
                "answered. Special tokens in a prompt template are the usual reason; give messages instead"
            )


def _turn(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]
