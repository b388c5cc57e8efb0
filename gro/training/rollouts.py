"""Completions and their rewards: prompts that the policy answers, and rows of files that rewards judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from gro.engines.base import Engine, Progress, Sampling
from gro.training.metrics import alike, describe_rollouts
from gro.training.settings import Resampling
from gro.training.sources import Order, Part, Stateless, check_rows
from gro.types import Completion, Group, Prompt


class Scorer(Protocol):
    """Gives completions their rewards."""

    def score(self, groups: Sequence[Group], *, step: int = 0) -> list[Group]:
        """The same groups with a reward on every completion that has none yet."""
        ...


class Online(Stateless):
    """Rollouts as a source.

    >>> Online(load_dataset(spec, tokenizer), engine, rewards, Sampling(), prompts_per_step=8, group_size=4)
    """

    def __init__(
        self,
        prompts: Sequence[Group],
        engine: Engine,
        rewards: Scorer | None,
        sampling: Sampling,
        *,
        prompts_per_step: int,
        group_size: int,
        seed: int = 0,
        greedy: bool = False,
        beside: bool = False,
        resample: Resampling | None = None,
        on_progress: Progress | None = None,
    ) -> None:
        """`prompts`: groups, of which only the prompts are used.  `rewards`: None where nothing reads any.

        `greedy`: each prompt is also answered greedily once, for the credit that subtracts that reward.  `beside`: the
        demonstrations of the groups join the samples.  `resample`: prompts whose samples are all equally good are
        replaced by others.
        """
        check_rows(prompts, prompts_per_step)
        if group_size < 1:
            raise ValueError(f"group_size must be at least 1, found {group_size}")
        self._prompts, self._engine, self._rewards, self._sampling = prompts, engine, rewards, sampling
        self._per_step, self._group_size, self._seed = prompts_per_step, group_size, seed
        self._greedy, self._beside, self._resample, self._on_progress = greedy, beside, resample, on_progress
        self._order, self._spare = Order(len(prompts), seed), Order(len(prompts), ~seed)
        self.observed: dict[str, float] = {}

    def take(self, step: int) -> list[Group]:
        """The groups of this step."""
        return self.draw(step * self._per_step, self._per_step, step)

    def draw(self, start: int, count: int, step: int) -> list[Group]:
        """Rolls out and scores the prompts numbered from `start`."""
        self.observed = {}
        if not count:
            return []
        asked: dict[int, int] = {}
        groups = self._answered(self._order.rows(start, count), step, asked)
        if self._resample is None:
            self.observed = describe_rollouts(groups)
            return groups
        return self._resampled(groups, start, step, asked, self._resample)

    def receive(self, policy: Any, step: int) -> None:
        """The engine samples from the weights after this step's updates."""
        self._engine.update(step + 1)

    def _resampled(
        self, groups: list[Group], start: int, step: int, asked: dict[int, int], how: Resampling
    ) -> list[Group]:
        """As many informative groups as were asked for, or those found when the rounds are used up (DAPO, Yu et al.
        2025, sec. 3.2); if there are none, the groups as they are.

        Other prompts come from an order of their own, of which every place belongs to one round of one step.
        """
        count, everything = len(groups), list(groups)
        kept = [group for group in groups if varies(group, how.by)]
        for number in range(how.rounds):
            if len(kept) == count:
                break
            place = start * how.rounds + number * count
            others = self._answered(self._spare.rows(place, count - len(kept)), step, asked)
            everything += others
            kept += [group for group in others if varies(group, how.by)]
        self.observed = describe_rollouts(everything) | {
            "resample/prompts": float(len(everything)),
            "resample/informative": float(len(kept)),
        }
        return kept or groups

    def _answered(self, rows: Sequence[int], step: int, asked: dict[int, int]) -> list[Group]:
        """Samples of these rows' prompts, rewarded, with what else belongs to their groups."""
        count, sources = len(rows), [self._prompts[i] for i in rows]
        prompts = _distinct([source.prompt for source in sources], asked)
        groups = self._rolled_out(prompts, self._group_size, self._sampling, step)
        greedy: list[Group] = []
        if self._greedy:
            greedy = self._rolled_out(prompts, 1, replace(self._sampling, greedy=True), step)
        if self._rewards is not None:
            scored = self._rewards.score([*groups, *greedy], step=step)
            groups, greedy = scored[:count], scored[count:]
        if self._greedy:
            pairs = zip(groups, greedy, strict=True)
            groups = [replace(group, greedy_reward=best.completions[0].reward) for group, best in pairs]
        if self._beside:
            pairs = zip(groups, sources, strict=True)
            groups = [replace(group, completions=group.completions + _targets(source)) for group, source in pairs]
        return groups

    def _rolled_out(self, prompts: list[Prompt], n: int, sampling: Sampling, step: int) -> list[Group]:
        answers = self._engine.generate(prompts, n, sampling, seed=self._seed, step=step, on_progress=self._on_progress)
        return [Group(prompt, completions) for prompt, completions in zip(prompts, answers, strict=True)]


class Judged:
    """A part whose completions have yet to be rewarded: each row is, once."""

    def __init__(self, part: Part, rewards: Scorer) -> None:
        self._part, self._rewards = part, rewards
        self.observed: dict[str, float] = {}
        self._known: dict[int, tuple[tuple[float | None, Mapping[str, float | None]], ...]] = {}

    def draw(self, start: int, count: int, step: int) -> list[Group]:
        """The groups numbered from `start`, with rewards."""
        groups = self._part.draw(start, count, step)
        fresh = {g.prompt.key: g for g in groups if g.prompt.key not in self._known}
        for group in self._rewards.score(list(fresh.values()), step=step):
            self._known[group.prompt.key] = tuple((c.reward, c.rewards) for c in group.completions)
        return [self._rewarded(group) for group in groups]

    def receive(self, policy: Any, step: int) -> None:
        """Files do not change with the policy."""

    def state(self) -> dict[str, Any]:
        """The rewards given so far, by the prompt's key."""
        rewards = {str(key): [[r, dict(parts)] for r, parts in known] for key, known in self._known.items()}
        return {"rewards": rewards, "part": self._part.state()}

    def load(self, state: Mapping[str, Any]) -> None:
        """The rewards as `state` gave them."""
        self._part.load(state["part"])
        self._known = {int(key): tuple((r, parts) for r, parts in known) for key, known in state["rewards"].items()}

    def _rewarded(self, group: Group) -> Group:
        pairs = zip(group.completions, self._known[group.prompt.key], strict=True)
        return replace(group, completions=tuple(replace(c, reward=r, rewards=parts) for c, (r, parts) in pairs))


def varies(group: Group, by: str | None = None) -> bool:
    """Whether the group's samples differ in their rewards, or in the part of them called `by`."""
    samples = [c for c in group.completions if c.role == "sample"]
    rewards = [c.reward if by is None else c.rewards.get(by) for c in samples]
    known = [r for r in rewards if r is not None]
    return bool(known) and not alike(known)


def _targets(group: Group) -> tuple[Completion, ...]:
    targets = tuple(c for c in group.completions if c.role == "target")
    if not targets:
        raise ValueError(f"prompt {group.prompt.key} has no demonstration to stand beside its samples")
    return targets


def _distinct(prompts: list[Prompt], asked: dict[int, int]) -> list[Prompt]:
    """The same row twice in one step gets another key, or both would be sampled with the same noise.

    `asked`: how often each key was asked for in this step already.
    """
    result = []
    for prompt in prompts:
        again = asked.get(prompt.key, 0)
        asked[prompt.key] = again + 1
        result.append(replace(prompt, key=prompt.key + (again << 40)) if again else prompt)
    return result
