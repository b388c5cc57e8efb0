"""A recipe for every algorithm's page, by what the algorithm learns from."""

from __future__ import annotations

from gro.algorithms.watch import filed
from gro.objective import Algorithm, Term
from gro.objective.credit import Labels
from gro.objective.gates import RewardAbove

FILES = {
    "demonstrations": 'offline: {path: demonstrations.jsonl}  # rows: {"prompt": ..., "completion": ...}',
    "pairs": 'offline: {path: pairs.jsonl}  # rows: {"prompt": ..., "chosen": ..., "rejected": ...}',
    "labels": 'offline: {path: labels.jsonl}  # rows: {"prompt": ..., "completion": ..., "label": true or false}',
    "rated": 'offline: {path: rated.jsonl}  # rows: {"prompt": ..., "completions": [...], "rewards": [...]}',
}
RATES = {"imitation": "1e-5", "preference": "5e-7", "policy gradient": "1e-6"}
"""Usual for full fine-tuning of a model of some billion parameters; small models take more."""


def recipe(name: str, family: str, line: str, algorithm: Algorithm) -> list[str]:
    """Lines of a whole recipe; `line` is the algorithm's own."""
    start = "models/base" if algorithm.roles == {"targets"} else "runs/sft"
    return [
        f"run: runs/{name}",
        f"model: {start}  # a folder, a run, or a name on the hub",
        line,
        *data(family, algorithm),
        *critic(algorithm),
        f"training: {{steps: 200, eval_every: 25{passes(family, algorithm)}}}",
        *optimizer(algorithm),
        held_out(family, algorithm),
    ]


def held_out(family: str, algorithm: Algorithm) -> str:
    """Rows of the same kind; where rated samples are learnt from, prompts to answer."""
    if online(family, algorithm):
        kind = "prompt_only" if algorithm.rewarded else "prompt_completion"
        return f"eval: {{data: {{path: held_out.jsonl, kind: {kind}}}, limit: 200}}  # rows like those above"
    if file_kind(algorithm) == "rated" and not algorithm.scores:
        read = '# rows: {"prompt": ..., "answer": ...}'
        return f"eval: {{data: {{path: held_out.jsonl, kind: prompt_only}}, rewards: [maths], limit: 200}}  {read}"
    return "eval: {data: {path: held_out.jsonl}, limit: 200}  # rows like those above"


def data(family: str, algorithm: Algorithm) -> list[str]:
    """What is learnt from, and how much of it at a time."""
    if online(family, algorithm):
        return rollouts(algorithm)
    return [FILES[file_kind(algorithm)], "prompts_per_step: 32"]


def file_kind(algorithm: Algorithm) -> str:
    """Which of the files it learns from, where the policy answers no prompts."""
    if algorithm.roles == {"targets"}:
        return "demonstrations"
    if "paired" in algorithm.roles:
        return "pairs"
    return "labels" if isinstance(algorithm.credit, Labels) else "rated"


def online(family: str, algorithm: Algorithm) -> bool:
    """Whether the policy answers prompts: not for what is made for files, unless it is self-play."""
    return not algorithm.scores and algorithm.roles != {"targets"} and (family == "self play" or not filed(algorithm))


def rollouts(algorithm: Algorithm) -> list[str]:
    """Prompts, with demonstrations where they are learnt from too, the reward, and answers per prompt."""
    read = ["answer"] if algorithm.rewarded else []
    read = ["completion", *read] if algorithm.beside else read
    kind, rows = "prompt_completion" if algorithm.beside else "prompt_only", "".join(f', "{key}": ...' for key in read)
    lines = [f'online: {{path: problems.jsonl, kind: {kind}}}  # rows: {{"prompt": ...{rows}}}']
    if "targets" in algorithm.roles and not algorithm.beside:
        lines += [FILES["demonstrations"], "offline_share: 0.25  # of a step's groups are demonstrations"]
    if algorithm.rewarded:
        lines += ["rewards: [maths]"]
    size = group_size(algorithm)
    return [*lines, f"prompts_per_step: {128 // size}", f"group_size: {size}", "sampling: {max_new_tokens: 512}"]


def group_size(algorithm: Algorithm) -> int:
    """Eight where the answers to a prompt are compared or selected; else one."""
    selected = any(isinstance(t, Term) and t.gate is not None for t in algorithm.terms)
    return 8 if algorithm.compares or algorithm.credit.group_size > 1 or algorithm.pairs or selected else 1


def critic(algorithm: Algorithm) -> list[str]:
    """Its section: a few steps in which it learns alone; more where it then stays."""
    if algorithm.critic is None:
        return []
    return [f"critic: {{warmup_steps: {50 if algorithm.critic.frozen else 5}, optimizer: {{learning_rate: 1e-5}}}}"]


def passes(family: str, algorithm: Algorithm) -> str:
    """Several updates per batch where the algorithm knows the policy that sampled; a pass for each threshold."""
    gates = [t.gate for t in algorithm.terms if isinstance(t, Term)]
    epochs = max((len(gate.thresholds) for gate in gates if isinstance(gate, RewardAbove)), default=1)
    several = online(family, algorithm) and "old" in algorithm.reads
    if several and not algorithm.single_update and algorithm.step is None:
        return ", epochs: 2, minibatches: 2"
    return f", epochs: {epochs}" if epochs > 1 else ""


def optimizer(algorithm: Algorithm) -> list[str]:
    """The learning rate; a trust region sets its steps itself."""
    if algorithm.step is not None:
        return []
    pushing = [t for t in algorithm.terms if isinstance(t, Term) and t.rows != "chosen"]
    imitates = algorithm.scores or all(t.value.imitates and t.rows in ("scored", "targets") for t in pushing)
    compared = bool(algorithm.roles & {"paired", "versus"}) or isinstance(algorithm.credit, Labels)
    kind = "preference" if compared and not algorithm.scores else "imitation" if imitates else "policy gradient"
    return [f"optimizer: {{learning_rate: {RATES[kind]}, warmup_steps: 10}}"]
