"""`gro generate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gro.assemble import Start, decoder, model_folder, rewards_inside, start_at
from gro.data.dataset import Dataset
from gro.data.encode import encode_prompts, load_dataset
from gro.data.spec import DataSpec
from gro.engines.base import Progress, Sampling
from gro.engines.local import LocalEngine
from gro.errors import DataError, GroError
from gro.evaluation.best_of_n import Point, best, curve
from gro.evaluation.selection import Form, Selection, Writer, check_presentable
from gro.policy.policy import Policy
from gro.recipe import ModelSettings
from gro.rewards import Rewards
from gro.runs.plain import load_yaml
from gro.types import Completion, Group


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Which prompts are answered, and how."""

    prompts: Sequence[str] = ()
    data: str | None = None
    """A file of prompts, in place of `prompts`."""
    prompt_template: str | None = None
    """Makes the prompt of the columns of `data`."""
    limit: int | None = None
    """Most rows of `data`."""
    n: int = 1
    """Answers per prompt."""
    temperature: float = 1.0
    """0: the most probable token."""
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 256
    chat: bool = False
    """A prompt of plain text is a user's turn."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Generated:
    """One answer."""

    prompt: str
    text: str
    finish: str
    """stop or length."""
    mean_logp: float
    """Nats per token, under the distribution that was sampled from."""
    reward: float | None = None
    """Where it was picked by one."""


@dataclass(frozen=True, slots=True)
class Best:
    """The best answers to all prompts, and what best-of-n is worth."""

    answers: list[Generated]
    """One per prompt that has an answer with a reward."""
    points: list[Point]
    """The picking reward's expectation by n."""
    samples: int
    failed: int
    """Samples without a reward; they are left out."""
    selection: Selection | None = None
    """What is to be written, where that was asked for."""


def generate_texts(model: str, asked: Asked) -> list[Generated]:
    """n answers to every prompt, as they would be sampled in training; names of special tokens in a prompt are text."""
    start = start_at(model_folder(model))
    groups = _sampled(start, _prompts(start, asked), asked)
    decode = decoder(start.tokenizer)
    return [_generated(group, c, decode) for group in groups for c in group.completions]


def generate_best(
    model: str,
    asked: Asked,
    rewards: Sequence[Any],
    *,
    write_as: Form | None = None,
    on_progress: Progress | None = None,
) -> Best:
    """The best of n answers to every prompt by the sum of the rewards.

    rewards: as a recipe lists them.  write_as: also select rows for a data set of this form.
    """
    if asked.n < 2:
        raise GroError(f"--best-of: best of {asked.n} is no choice; give at least 2")
    if asked.temperature == 0:
        raise GroError("--temperature 0 gives the same answer every time; the best of several needs samples")
    start = start_at(model_folder(model))
    prompts = _prompts(start, asked)
    if write_as is not None:
        check_presentable(prompts, start.tokenizer)
    decode = decoder(start.tokenizer)
    inside = rewards_inside(ModelSettings(), start.tokenizer)
    with Rewards(
        rewards, decode, inside=inside
    ) as scorer:  # before the sampling: a reward that is not there is found at once
        groups = scorer.score(_sampled(start, prompts, asked, on_progress))
    found = [[c.reward for c in group.completions] for group in groups]
    picked = [
        (group, group.completions[i]) for group, r in zip(groups, found, strict=True) if (i := best(r)) is not None
    ]
    special = {i for i, token in start.tokenizer.added_tokens_decoder.items() if token.special}
    writer = Writer(write_as, decode, special) if write_as is not None else None
    return Best(
        answers=[_generated(group, completion, decode) for group, completion in picked],
        points=curve(found),
        samples=sum(map(len, found)),
        failed=sum(reward is None for rewards in found for reward in rewards),
        selection=writer.select(groups) if writer is not None else None,
    )


def parse_reward(text: str) -> Any:
    """An item of `--reward`: a name, path/to/file.py:function, or a mapping as in a recipe.

    >>> parse_reward("{reward: exact_match, column: answer}")
    {'reward': 'exact_match', 'column': 'answer'}
    """
    if not text.lstrip().startswith("{"):
        return text
    try:
        return load_yaml(text)
    except Exception as error:  # PyYAML raises its own errors, and ValueError for odd numbers
        raise GroError(f"--reward: {text!r} is not valid YAML: {' '.join(str(error).split())}") from error


def _prompts(start: Start, asked: Asked) -> Dataset:
    if asked.data is not None:
        if not Path(asked.data).is_file():
            raise GroError(f"--data: {asked.data!r} is not a file")
        spec = DataSpec(
            asked.data,
            kind="prompt_only",
            chat=asked.chat or None,
            prompt_template=asked.prompt_template,
            stop=asked.limit,
        )
        try:
            return load_dataset(spec, start.tokenizer, end_ids=start.ends)
        except DataError as error:
            if not error.found.startswith("the columns"):
                raise
            fix = "Give --prompt-template with a column's name in braces."  # the command has no key `columns`
            raise DataError(
                error.file, field=error.field, found=error.found, expected=error.expected, fix=fix
            ) from error
    return encode_prompts(list(asked.prompts), start.tokenizer, end_ids=start.ends, chat=asked.chat or None)


def _sampled(start: Start, prompts: Dataset, asked: Asked, on_progress: Progress | None = None) -> list[Group]:
    sampling = Sampling(
        temperature=asked.temperature or 1.0,
        top_p=asked.top_p,
        top_k=asked.top_k,
        max_new_tokens=asked.max_new_tokens,
        stop_ids=tuple(sorted(prompts.ends)),
        greedy=asked.temperature == 0,
    )
    assert start.path is not None
    engine = LocalEngine(Policy.load(start.path).model)
    asked_for = [group.prompt for group in prompts]
    drawn = engine.generate(asked_for, asked.n, sampling, seed=asked.seed, step=0, on_progress=on_progress)
    return [Group(prompt, completions) for prompt, completions in zip(asked_for, drawn, strict=True)]


def _generated(group: Group, completion: Completion, decode: Any) -> Generated:
    prompt = group.prompt.row["prompt"]
    return Generated(
        prompt if isinstance(prompt, str) else decode(group.prompt.ids),
        decode(completion.ids),
        completion.finish,
        sum(completion.logp or ()) / max(len(completion.ids), 1),
        completion.reward,
    )
