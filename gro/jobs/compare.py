"""`gro compare-objectives`: what each algorithm would do with one batch, token by token, and how alike they are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gro.algorithms import build, names
from gro.assemble import Start, model_folder, start_at
from gro.data.encode import load_dataset, without_recipe
from gro.data.spec import DataSpec
from gro.errors import GroError
from gro.evaluation.material import Material, recorded
from gro.evaluation.microscope import FACTORS, Microscope, Row, Seen, cosines
from gro.objective import Algorithm
from gro.policy.policy import Policy
from gro.runs import RunReader
from gro.runs.plain import load_yaml, size_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Which model, which batch, which algorithms."""

    model: str
    data: DataSpec | None = None
    run: str | None = None
    """Rollouts that this run recorded, in place of `data`."""
    step: int | None = None
    """Of the run; None: the last one with rollouts."""
    limit: int = 16
    """Most groups."""
    algorithms: str | None = None
    """As `parse_algorithms` reads them; None: all that can learn from the batch."""
    reference: str | None = None
    """None: what the run recorded, or else the model itself."""
    drift: float = 0.0
    """Size, in nats, of the noise between the old policy and this one; 0: as recorded, or none."""


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """What was found."""

    model: str
    rows: tuple[Row, ...]
    seen: tuple[Seen, ...]
    refused: dict[str, str]
    norms_A: Tensor
    gradient_AA: Tensor
    """Cosines of the exact gradients by the weights."""
    logp_AA: Tensor
    """Cosines of the coefficients: of the gradients by the tokens' log-probs."""
    notes: tuple[str, ...]

    @property
    def labels(self) -> list[str]:
        """Of the algorithms that were compared."""
        return [one.label for one in self.seen]

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "model": self.model,
            "notes": list(self.notes),
            "algorithms": self.labels,
            "refused": self.refused,
            "losses": [one.loss for one in self.seen],
            "norms": self.norms_A.tolist(),
            "cosines": {"gradients": self.gradient_AA.tolist(), "coefficients": self.logp_AA.tolist()},
            "completions": [self._row(b, row) for b, row in enumerate(self.rows)],
        }

    def _row(self, b: int, row: Row) -> dict[str, Any]:
        return {
            "group": row.place[0],
            "role": row.role,
            "reward": row.reward,
            "prompt": row.prompt,
            "tokens": list(row.tokens),
            "coefficients": {one.label: one.c[b].tolist() for one in self.seen},
            "terms": {
                one.label: [{name: term[name][b].tolist() for name in FACTORS} for term in one.terms]
                for one in self.seen
            },
        }


def parse_algorithms(text: str) -> dict[str, Algorithm]:
    """By label: names or file.py:function, separated by commas, with parameters behind a colon.

    >>> list(parse_algorithms("rloo,grpo:clip=0.3,beta=0.1"))
    ['rloo', 'grpo:clip=0.3,beta=0.1']
    """
    labels: list[str] = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        if re.fullmatch(r"\w+=.*", part) and labels and "=" in labels[-1]:
            labels[-1] += f",{part}"  # one more parameter of the same algorithm
        else:
            labels.append(part)
    if not labels:
        raise GroError("--algorithms names none; expected names separated by commas: dpo,ipo,grpo:clip=0.3")
    return {label: _algorithm(label) for label in labels}


def _algorithm(label: str) -> Algorithm:
    name, _, given = label.rpartition(":") if "=" in label else (label, "", "")
    if not name:
        raise GroError(f"--algorithms: {label!r}: parameters follow a name and a colon: grpo:clip=0.3")
    parameters: dict[str, Any] = {}
    for item in filter(None, given.split(",")):
        key, _, value = item.partition("=")
        try:
            parameters[key] = load_yaml(value)
        except Exception as error:  # PyYAML raises its own errors, and ValueError for odd numbers
            raise GroError(f"--algorithms: {label!r}: the value {value!r} of {key} is not valid YAML") from error
    return build(name, **parameters)


def rows_of_file(
    path: str, kind: str, prompt_template: str | None, completion_template: str | None, limit: int
) -> DataSpec:
    """The first rows of a file, as the command line names them."""
    if not Path(path).is_file():
        raise GroError(f"--data: {path!r} is not a file")
    try:
        return DataSpec(
            path,
            kind=kind,  # type: ignore[arg-type]
            prompt_template=prompt_template,
            completion_template=completion_template,
            stop=limit,
        )
    except GroError as error:
        raise GroError(f"--{error}") from error


def compare_objectives(asked: Asked) -> Comparison:
    """Every algorithm on the same batch."""
    if (asked.data is None) == (asked.run is None):
        raise GroError("give the batch with --data or with --run" + (", not both" * (asked.run is not None)))
    if asked.algorithms is None:
        algorithms = {name: build(name) for name in names()}
    else:
        algorithms = parse_algorithms(asked.algorithms)
    start = start_at(model_folder(asked.model))
    material, origin = _material(asked, start)
    assert start.path is not None
    policy = Policy.load(start.path)
    _check_vocabulary(policy, material)
    reference = Policy.load(model_folder(asked.reference)) if asked.reference is not None else None
    microscope = Microscope(policy, material, reference, asked.drift)
    seen: list[Seen] = []
    vectors: list[Tensor] = []
    refused: dict[str, str] = {}
    for label, algorithm in algorithms.items():
        try:
            one, vector_P = microscope.look(label, algorithm)
        except (GroError, ValueError) as error:  # what its slots say, where the batch lacks something
            refused[label] = str(error)
        else:
            seen.append(one)
            vectors.append(vector_P)
    if not seen:
        reasons = "\n".join(f"  {label}: {reason}" for label, reason in refused.items())
        raise GroError(f"none of the algorithms can learn from {origin}:\n{reasons}")
    norms_A, gradient_AA = cosines(vectors)
    logp_AA = cosines([torch.cat(one.c) for one in seen])[1]
    held = sum(v.numel() * v.element_size() for v in vectors)
    size = f"{len(seen)} gradients of {len(vectors[0]):,} weights each, {size_text(held)} of memory"
    notes = (origin, *microscope.notes, size)
    rows = microscope.rows
    return Comparison(asked.model, rows, tuple(seen), refused, norms_A, gradient_AA, logp_AA, notes)


def _material(asked: Asked, start: Start) -> tuple[Material, str]:
    """The batch, and where it is from."""
    if asked.run is not None:
        with RunReader(asked.run) as reader:
            material, step = recorded(reader, asked.step, asked.limit)
        origin = f"{len(material.places)} completions of {len(material.groups)} prompts, step {step} of {asked.run}"
        return material, origin
    assert asked.data is not None
    if asked.step is not None:
        raise GroError("--step is one of a run's steps: give --run")
    with without_recipe("Call them so in the file."):
        groups = tuple(load_dataset(asked.data, start.tokenizer, end_ids=start.ends)[: asked.limit])
    path = ", ".join(asked.data.paths)
    if not any(g.completions for g in groups):
        raise GroError(f"--data: {path} has prompts without completions; expected pairs, or completions with rewards")
    material = Material(groups)
    return material, f"{len(material.places)} completions of {len(groups)} prompts of {path}"


def _check_vocabulary(policy: Policy, material: Material) -> None:
    size: int = policy.model.config.get_text_config().vocab_size
    highest = max(max((*g.prompt.ids, *(i for c in g.completions for i in c.ids))) for g in material.groups)
    if highest >= size:
        found = f"token {highest} of the batch is not in the model's vocabulary of {size}"
        raise GroError(f"{found}: the run must be of a model with the same tokenizer")
