"""What a recipe can say: the settings, their defaults and their ranges.

Nothing here imports torch or transformers, so that a wrong key is answered at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, Field

from gro.data.spec import DataSpec
from gro.evaluation.overopt_settings import OveroptSettings
from gro.policy.spec import CreateSpec, LoraSettings
from gro.runs.plain import plain
from gro.schema import CHECKED, Count, Index, Positive, Share
from gro.training.settings import Distributed, Optimization, Portions, Replaying, Resampling

DataSpec.__pydantic_config__ = CHECKED  # type: ignore[attr-defined]
CreateSpec.__pydantic_config__ = CHECKED  # type: ignore[attr-defined]
LoraSettings.__pydantic_config__ = CHECKED  # type: ignore[attr-defined]

Name = Annotated[str, Field(min_length=1)]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:[0-9]+)?)$")]


@dataclass(frozen=True)
class ModelSettings:
    """Which model is trained."""

    __pydantic_config__: ClassVar[ConfigDict] = CHECKED

    path: Name | None = None
    """A folder in Hugging Face format, a name on the hub, or a run directory (its exported model)."""
    create: CreateSpec | None = None
    """Or: a small model from nothing, its tokenizer trained on the texts of this recipe's data."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """Of the master weights, whatever the file holds."""
    lora: LoraSettings | None = None
    """Train a low-rank adapter beside the weights, which stay as they are; None: all weights.  {}: with its defaults.
    Where path is an adapter's folder, that one is trained on; None merges it and trains all weights."""
    device: Device = "auto"
    """auto (a CUDA device where there is one), cpu, mps, cuda or cuda:1."""
    activation_checkpointing: bool = False
    """Compute each layer again in the backward pass instead of keeping its activations: less memory, more time."""
    autocast: Literal["bfloat16"] | None = None
    """Run forward and backward in this precision; the weights stay in dtype."""
    allow_pickle: bool = False
    """Load .bin weights, which can execute code.  Only for files you made yourself."""


@dataclass(frozen=True)
class SamplingSettings:
    """How the policy answers prompts."""

    __pydantic_config__: ClassVar[ConfigDict] = CHECKED

    temperature: Positive = 1.0
    """Of the samples that are learnt from; held-out answers are greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Only the most probable tokens that together reach this; 1: all."""
    top_k: Index = 0
    """Only so many of the most probable tokens; 0: no limit."""
    max_new_tokens: Count = 256
    """Longer answers are cut off."""
    stop: tuple[Name, ...] = ()
    """Tokens that end a completion, besides the tokenizer's and the model's own."""


@dataclass(frozen=True)
class WeightedData:
    """One of several offline data sets."""

    __pydantic_config__: ClassVar[ConfigDict] = CHECKED

    data: DataSpec
    """The rows."""
    weight: Positive = 1.0
    """Its share of the offline groups, relative to the others'."""


@dataclass(frozen=True)
class CriticSettings:
    """The critic of an algorithm that reads values."""

    __pydantic_config__: ClassVar[ConfigDict] = CHECKED

    kind: Literal["own", "shared"] = "own"
    """own: a model beside the policy.  shared: a head on the policy's own hidden states, for half the memory."""
    path: Name | None = None
    """Where a critic of its own starts: a reward model or any model with the policy's tokenizer; None: as the policy.
    Its values are 0 at first, but for a reward model's, which begin as its scores."""
    warmup_steps: Index = 0
    """First steps, in which only the critic learns (of a shared one only the head)."""
    lora: LoraSettings | None = None
    """The adapter of a critic of its own; None: as the policy's, where that has one."""
    optimizer: Optimization | None = None
    """How its weights move; None: as the policy's.  A shared critic moves with the policy after its warm-up."""


@dataclass(frozen=True)
class RewardModelSettings:
    """How a reward model is trained."""

    __pydantic_config__: ClassVar[ConfigDict] = CHECKED

    members: Count = 1
    """So many are trained, each on another order of the rows; the exported one has the mean of their weights (WARM)."""
    probe_steps: Index = 0
    """Steps before, in which only the head learns; all members begin with that head."""
    label_noise: Share = 0.0
    """In this part of the training rows the worse completion is called the better one: to study what noise does."""


@dataclass(frozen=True)
class EvaluationSettings:
    """Held-out evaluation: by reward (greedy answers), preference accuracy or loss, whichever the data allow."""

    __pydantic_config__: ClassVar[ConfigDict] = CHECKED

    data: DataSpec
    """Rows that nothing is trained on."""
    limit: Count = 500
    """Most rows used."""
    rewards: tuple[Any, ...] | None = None
    """None: the recipe's rewards."""
    max_new_tokens: Count | None = None
    """None: the recipe's."""
    samples: Count | None = None
    """Also so many samples per prompt, drawn as in training: pass@k, accuracy, KL to the reference, diversity."""
    k: tuple[Count, ...] | None = None
    """Of pass@k; None: powers of two up to samples."""
    correct_from: float | None = None
    """An answer with at least this reward is correct; None: 1 where every reward is 0 or 1."""
    slice: Name | None = None
    """A column of the data: a reward model's accuracy is also told apart by its values."""

    def __post_init__(self) -> None:
        """Raises ValueError where pass@k would need more samples than there are."""
        if self.k is not None and max(self.k, default=0) > (self.samples or 0):
            raise ValueError(f"pass@{max(self.k)} takes at least {max(self.k)} samples; samples is {self.samples}")


class Config(BaseModel):
    """A resolved recipe."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True, frozen=True)

    run: Name
    """The run directory."""
    model: ModelSettings
    """A path alone, or {path: ...} or {create: ...} with further settings."""
    algorithm: dict[str, Any]
    """name (or file: path/to/file.py:function) and parameters; `gro algorithms NAME` lists them."""
    training: Portions
    """Steps, updates and micro-batches."""
    optimizer: Optimization = Optimization()
    """How weights move."""
    distributed: Distributed = Distributed()
    """What several processes (torchrun) do with the weights."""
    reward_model: RewardModelSettings = RewardModelSettings()
    """For algorithms that train a reward model."""
    overopt: OveroptSettings | None = None
    """For `gro overopt`, to which `rewards` are the gold reward; None: no study."""
    critic: CriticSettings | None = None
    """For an algorithm with a critic; None: a copy of the policy, without warm-up."""
    offline: tuple[WeightedData, ...] = ()
    """Rows learnt from as they are: one data set, or a list of {data: ..., weight: ...}."""
    online: DataSpec | None = None
    """Prompts that the policy answers; the answers are rewarded."""
    prompts_per_step: Count
    """Groups per step: prompts, preference pairs or rows."""
    offline_share: Share | None = None
    """Of the groups of a step, how many are offline, where both are given."""
    group_size: Count = 8
    """Answers per online prompt."""
    resample: Resampling | None = None
    """Replace online prompts whose answers are all equally good; None: they stay, and teach nothing."""
    replay: Replaying | None = None
    """Learn from the answers of earlier steps too; None: from this step's only."""
    sampling: SamplingSettings = SamplingSettings()
    """How the policy answers prompts."""
    slots: Count = 256
    """Completions decoded at once, at most.  A matter of memory: it cannot change the result."""
    rewards: tuple[Any, ...] = ()
    """Names, path/to/file.py:function, or mappings {reward: ..., weight: ..., further parameters}."""
    reward_time_limit: Positive | None = None
    """Seconds for one call of every reward whose item gives none; None: what each function says, or 30."""
    reward_failure_stop_share: Share = 0.5
    """Training stops when a reward fails on more than this share of a step's completions."""
    reward_normalise: Literal["none", "each", "sum"] = "none"
    """Z-scores within a prompt's sampled answers: of each reward, which are then summed, or of the sum of rewards."""
    eval: EvaluationSettings | None = None
    """Held-out data, measured before and after training; None: no evaluation."""

    def resolved(self) -> dict[str, Any]:
        """Everything in plain values, defaults included."""
        return plain(self.model_dump(mode="json"))

    @property
    def datasets(self) -> dict[str, DataSpec]:
        """Every data set by its key."""
        found = {f"offline.{i}.data": weighted.data for i, weighted in enumerate(self.offline)}
        found |= {"online": self.online} if self.online else {}
        return found | ({"eval.data": self.eval.data} if self.eval else {})

    @property
    def files(self) -> dict[str, str]:
        """Every data file and chat template by the key that names it."""
        found = {}
        for key, spec in self.datasets.items():
            several = not isinstance(spec.path, str)
            found |= {f"{key}.path" + (f".{i}" if several else ""): path for i, path in enumerate(spec.paths)}
            found |= {f"{key}.chat_template": spec.chat_template} if spec.chat_template else {}
        return found

    @property
    def parameters(self) -> dict[str, Any]:
        """The algorithm's parameters, without its name."""
        return {key: value for key, value in self.algorithm.items() if key != "name"}


def annotation_at(place: tuple[str, ...]) -> Any:
    """What type belongs at this place of a recipe; None where there is no such key.

    >>> annotation_at(("training", "steps"))
    typing.Annotated[int, FieldInfo(annotation=NoneType, required=True, metadata=[Ge(ge=1), Le(le=...)])]
    """
    here: Any = Config
    for part in place:
        if not part.isdigit():
            here = keys_of(here).get(part)
    return here


def keys_of(annotation: Any) -> dict[str, Any]:
    """Keys and their types where settings stand, or a list or choice of settings; empty for anything else."""
    if annotation is Config:
        return {name: info.rebuild_annotation() for name, info in Config.model_fields.items()}
    owner = next((t for t in _inside(annotation) if isinstance(t, type) and is_dataclass(t)), None)
    if owner is None:
        return {}
    hints = get_type_hints(owner, include_extras=True)
    return {f.name: hints[f.name] for f in fields(owner)}


@cache
def all_keys() -> dict[str, list[str]]:
    """By the last part of a key, all the places where it stands: `steps` → [`training.steps`]."""
    found: dict[str, list[str]] = {}

    def visit(annotation: Any, place: tuple[str, ...]) -> None:
        for name, inner in keys_of(annotation).items():
            # The usual single data set of offline stands under offline itself.
            here = place if (*place, name) == ("offline", "data") else (*place, name)
            found.setdefault(name, []).append(".".join(here))
            visit(inner, here)

    visit(Config, ())
    return found


def _inside(annotation: Any) -> Iterator[Any]:
    """The annotation and everything in it."""
    yield annotation
    for inner in get_args(annotation):
        yield from _inside(inner)
