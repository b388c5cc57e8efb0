"""A proxy under pressure: best-of-n over samples of the start, and a policy that is trained against it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from typing import Any

import numpy as np
from numpy import ndarray

from gro.assemble import Data, Start, build_algorithm, decoder, learning_of, load_policy, source_of
from gro.config import Config
from gro.engines.base import Engine, Sampling
from gro.engines.local import LocalEngine
from gro.evaluation import several
from gro.evaluation.best_of_n import best_of_n, kl_bon
from gro.evaluation.heldout import answer
from gro.evaluation.overopt_settings import OveroptSettings
from gro.evaluation.overoptimisation import BestOfN, Course, Learning
from gro.jobs.proxies import Proxy, Standardised, Unit
from gro.policy.policy import Policy
from gro.rewards import Rewards
from gro.runs.progress import Progress, progress
from gro.runs.store import Run
from gro.training.loop import train
from gro.training.prepare import Reference
from gro.training.recording import Recorder
from gro.training.stopping import disagreement, diverged, turned_down
from gro.types import Group, Prompt

LEARNING = "rl"
"""A folder of the run, with a run for each policy that was trained against a proxy."""
_SHOWN = 3
"""Prompts whose answers are kept: of the start, of the highest gold reward, and of the end."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What all parts of a study share."""

    config: Config
    settings: OveroptSettings
    run: Run
    start: Start
    data: Data
    prompts: Sequence[Prompt]
    """Held out."""
    sampling: Sampling
    gold: Rewards
    gold_unit: Unit
    drawn: Sequence[Group]
    """Samples of the start on the held-out prompts, with gold rewards."""

    def golds(self, groups: Sequence[Group]) -> list[list[float | None]]:
        """By prompt, in the gold reward's unit."""
        return [[None if c.reward is None else self.gold_unit(c.reward) for c in g.completions] for g in groups]


@dataclass(frozen=True, slots=True)
class Judged:
    """A proxy with the units of its members and its scores of the start's samples."""

    proxy: Proxy
    units: tuple[Unit, ...]
    scores: list[list[float]]
    """By prompt, of the first member, in its unit."""
    agreement: float
    """On how many pairs of neighbouring samples it says what gold says; ties count one half."""

    @classmethod
    def of(cls, setting: Setting, proxy: Proxy) -> Judged:
        tokens = setting.config.training.micro_tokens
        units = tuple(Unit.of(m.scores(setting.drawn, tokens).tolist()) for m in proxy.members)
        scores = _scores(proxy, 0, units[0], setting.drawn, tokens)
        agreed = []
        for ours, theirs in zip(scores, setting.golds(setting.drawn), strict=True):
            for i in range(0, len(ours) - 1, 2):
                first, second = theirs[i], theirs[i + 1]
                if first is not None and second is not None and first != second:
                    agreed.append(0.5 + 0.5 * float(np.sign((ours[i] - ours[i + 1]) * (first - second))))
        return cls(proxy, units, scores, float(np.mean(agreed)) if agreed else float("nan"))


def _scores(proxy: Proxy, member: int, unit: Unit, groups: Sequence[Group], tokens: int) -> list[list[float]]:
    """By prompt, in the unit."""
    flat = iter(proxy.members[member].scores(groups, tokens).tolist())
    return [[unit(next(flat)) for _ in g.completions] for g in groups]


def pick_best(setting: Setting, judged: Judged) -> Course:
    """The unbiased estimate for a series of n, from the same samples."""
    golds = setting.golds(setting.drawn)
    at = numbers(setting.settings.best_of)

    def curves(judges: Sequence[Sequence[float | None]]) -> ndarray:
        pairs = zip(judged.scores, judges, strict=True)
        return _from_start(np.array([[best_of_n(proxy, n, judge) for n in at] for proxy, judge in pairs]))

    return Course(at, tuple(map(kl_bon, at)), curves(golds), curves(judged.scores), BestOfN())


def numbers(most: int) -> tuple[int, ...]:
    """Up to `most`, two for each doubling.

    >>> numbers(20)
    (1, 2, 3, 4, 6, 8, 12, 16, 20)
    """
    series = {most, *(m * 2**k for m in (2, 3) for k in range(most.bit_length())), 1}
    return tuple(sorted(n for n in series if n <= most))


def _from_start(reward_PK: ndarray) -> ndarray:
    """Each prompt's curve as the difference from its own start; prompts that lack a reward anywhere are left out."""
    kept_PK = reward_PK[np.isfinite(reward_PK).all(1)]
    return kept_PK - kept_PK[:, :1]


@dataclass(slots=True)
class Learnt:
    """A policy on its way, measured at every evaluation."""

    setting: Setting
    judged: Judged
    engine: Engine
    policy: Policy
    reference: Reference
    steps: list[int] = field(default_factory=list)
    kls: list[tuple[float, float]] = field(default_factory=list)
    """k1 and k3 of whole answers."""
    golds: list[list[float]] = field(default_factory=list)
    """By evaluation and prompt, nan where every gold reward failed."""
    proxies: list[list[float]] = field(default_factory=list)
    apart: list[float] = field(default_factory=list)
    """Disagreement of the members."""
    answers: list[list[dict[str, Any]]] = field(default_factory=list)

    def measure(self) -> dict[str, float]:
        """Samples on the held-out prompts, what both rewards think of them, and how far they are from the start.

        The samples' noise is the same at every evaluation, and that of the start's samples: differences are of the
        policies.
        """
        setting, proxy = self.setting, self.judged.proxy
        config, tokens = setting.config, setting.config.training.micro_tokens
        assert config.eval is not None
        groups = answer(self.engine, setting.gold, setting.prompts, setting.sampling, n=config.eval.samples or 1).groups
        members = [_scores(proxy, m, unit, groups, tokens) for m, unit in enumerate(self.judged.units)]
        far = several.divergence(self.policy, self.reference, groups, tokens)
        golds = setting.golds(groups)
        self.steps.append(len(self.steps) * config.training.eval_every)
        self.kls.append((far["samples/sequence_kl_k1"].value, far["samples/sequence_kl"].value))
        self.golds.append([_mean(g) for g in golds])
        self.proxies.append([_mean(p) for p in members[0]])
        flat = {str(m): [s for scores in by_prompt for s in scores] for m, by_prompt in enumerate(members)}
        if len(members) > 1:
            self.apart.append(disagreement(flat, dict.fromkeys(flat, (0.0, 1.0))))  # in their units already
        read = decoder(setting.start.tokenizer)
        self.answers.append(
            [
                {"prompt": read(g.prompt.ids), "answer": read(g.completions[0].ids), "gold": gold[0], "proxy": score[0]}
                for g, gold, score in zip(groups[:_SHOWN], golds, members[0], strict=False)
            ]
        )
        found = {"gold": _mean(self.golds[-1]), "proxy": _mean(self.proxies[-1]), "kl": self.kls[-1][0]}
        return found | ({"disagreement": self.apart[-1]} if self.apart else {})

    @property
    def course(self) -> Course:
        gold_PK, proxy_PK = np.array(self.golds).T, np.array(self.proxies).T
        kept_P = np.isfinite(gold_PK).all(1)
        kls = tuple(k1 for k1, _ in self.kls)
        return Course(tuple(self.steps), kls, _from_start(gold_PK[kept_P]), _from_start(proxy_PK[kept_P]), Learning())

    def stops(self) -> dict[str, dict[str, float] | None]:
        """Where each rule of early stopping ends this course, and the gold reward there; None: nowhere."""
        settings, golds = self.setting.settings, self.course.gold_PK.mean(0)
        places = {"gold": turned_down(golds.tolist(), settings.patience)}
        if self.apart:
            places["disagreement"] = diverged(self.apart, settings.threshold, settings.patience)
        return {
            rule: None if place is None else {"at": self.steps[place], "gold": float(golds[place])}
            for rule, place in places.items()
        }

    def examples(self) -> dict[str, list[dict[str, Any]]]:
        """Answers to the same prompts at the start, where gold is highest, and at the end."""
        return {"start": self.answers[0], "highest": self.answers[self.course.turn.place], "end": self.answers[-1]}


def learn(setting: Setting, judged: Judged, show: Progress) -> Learnt:
    """Trains a copy of the start against the proxy, to the last step, by the recipe's algorithm."""
    config, data = setting.config, setting.data
    assert setting.start.path is not None
    algorithm, policy = build_algorithm(config), load_policy(config, setting.start.path)
    # The last step is evaluated whatever the interval: steps that do not fill one are left out.
    every = config.training.eval_every
    config = config.model_copy(
        update={"training": replace(config.training, steps=config.training.steps // every * every)}
    )
    reference = Reference(policy.snapshot())
    engine = LocalEngine(policy.model, slots=config.slots)
    learnt = Learnt(setting, judged, engine, policy, reference)
    model, unit = judged.proxy.members[0], judged.units[0]
    tokens = config.training.micro_tokens
    inside = {"proxy": lambda params: Standardised(model, unit, tokens)}
    with ExitStack() as stack:
        run = stack.enter_context(Run.open(setting.run.path / LEARNING / judged.proxy.name, config.resolved()))
        reward = stack.enter_context(Rewards(["proxy"], decoder(setting.start.tokenizer), inside=inside))
        unseen = stack.enter_context(progress(config.training.steps, stream=io.StringIO()))
        learning = learning_of(config, policy, algorithm)
        recorder = Recorder(run, unseen, policy, algorithm, config.training, reference)
        recorder.evaluated(0, learnt.measure)
        train(
            policy,
            source_of(config, data, engine, reward, setting.sampling, algorithm, show.generating),
            algorithm,
            learning.learners,
            config.training,
            recorder,
            reference=Reference(reference.policy),  # which may follow the policy; distances stay those from the start
            critic=learning.critic,
            warmup=learning.warmup,
            length_limit=setting.sampling.max_new_tokens,
            evaluate=learnt.measure,
        )
        run.finish(algorithm=algorithm.name)
    return learnt


def plain(judged: Judged, best: Course, learnt: Learnt) -> dict[str, Any]:
    """All that was found about a proxy, as JSON has it."""
    return {
        "size": str(judged.proxy.size),
        "parameters": judged.proxy.parameters,
        "pairs": judged.proxy.pairs,
        "agreement": judged.agreement,
        "best_of_n": _course(best),
        "rl": _course(learnt.course)
        | {"kl_k3": [k3 for _, k3 in learnt.kls], "disagreement": learnt.apart}
        | {"stops": learnt.stops(), "answers": learnt.examples()},
    }


def _course(course: Course) -> dict[str, Any]:
    fits = {
        name: None if fit is None else asdict(fit) for name, fit in (("gold", course.gold), ("proxy", course.proxy))
    }
    turn = course.turn
    return {
        "points": course.points(),
        "fits": fits,
        "turn": asdict(turn) | {"at": course.at_K[turn.place], "turned": turn.turned},
    }


def _mean(values: Sequence[float | None]) -> float:
    """Of those that are there; nan where none is."""
    known = [v for v in values if v is not None and np.isfinite(v)]
    return fmean(known) if known else float("nan")
