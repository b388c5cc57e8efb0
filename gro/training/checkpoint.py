"""Where an interrupted run goes on: everything that one step leaves to the next, written whole or not at all.

    state/step-N/        after N steps; the newest two are kept
        state.json       plain numbers: step, updates, the credit's and the terms' state, the source's, the recorder's
        weights.safetensors, critic.safetensors, optimizer.safetensors
        reference.safetensors, known.safetensors      a reference that was refreshed; log-probs that were remembered
        manifest.json    checksums of the rest, written last
        parts/           in place of the tensors that training changes, where weights are cut over processes

What is not here is a function of the recipe and the step: the order of rows, the noise of sampling, minibatches, the
learning rate.  So a run that goes on from here does, to the bit, what it would have done: on as many processes as
before.  On another number passes are shared out otherwise, which rounds otherwise, and that must be asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gro.errors import GroError, Interrupted
from gro.objective.credit import State
from gro.policy.critic import Critic
from gro.policy.policy import Policy
from gro.runs import files
from gro.runs.plain import exact, size_text
from gro.runs.store import CHECKPOINTS, STATE
from gro.training import sharded_state
from gro.training.descent import Descent
from gro.training.finite import fault_in_weights
from gro.training.loop import Resumed, Source
from gro.training.prepare import Reference
from gro.training.processes import ALONE, Processes
from gro.training.recording import Recorder

PREFIX = "step-"
KEPT = 2
"""States on disk: if the newest is damaged, there is one more."""
MINUTES = 10.0
"""Between two states, where the recipe does not say how many steps."""


@dataclass(frozen=True, slots=True)
class Carried:
    """All that changes in a run from step to step, besides the loop's own plain numbers."""

    policy: Policy
    source: Source
    recorder: Recorder
    descents: Mapping[str, Descent] = field(default_factory=dict)
    """Optimizers by the name of what they move."""
    critic: Critic | None = None
    references: Mapping[str, Reference] = field(default_factory=dict)
    """What is learnt against, what is measured against; the same one may have two names."""
    processes: Processes = ALONE
    elastic: bool = False
    """May go on from a state of another number of processes."""

    @property
    def shard(self) -> int:
        """Over how many processes weights are cut; 1: every one has all of them."""
        return 1 if self.policy.sharding is None else self.policy.sharding.parts

    def check(self, step: int) -> None:
        """Raises GroError where a weight is not finite, which must never be on disk."""
        fault = fault_in_weights(self.policy.trained() | (self.critic.trained() if self.critic is not None else {}))
        self.processes.raise_together(f"after step {step}: {fault}; nothing was saved" if fault else None)

    def save(self, folder: Path, step: int, state: State) -> None:
        """Writes what a run needs that goes on after `step` steps, but for tensors of which each process has a part."""
        if self.shard == 1:
            _write(self.policy.trained(), folder / "weights.safetensors")
            if self.critic is not None:
                self.critic.save(folder)
            _write(self._memory(), folder / "optimizer.safetensors")
        for name, reference in self._references().items():
            _write(reference.known(), folder / f"{name}-known.safetensors")
            if reference.refreshed and self.shard == 1:
                _write(reference.policy.trained(), folder / f"{name}.safetensors")
        plain = {
            "format": 1,
            "step": step,
            "processes": self.processes.size,
            "shard": self.shard,
            "updates": {who: descent.updates for who, descent in self.descents.items()},
            "refreshed": [name for name, reference in self._references().items() if reference.refreshed],
            "state": {name: exact(value) for name, value in state.items()},
            "source": self.source.state(),
            "recorder": self.recorder.state(),
        }
        files.write_json(folder / "state.json", plain)

    def load(self, folder: Path) -> Resumed:
        """What had been done as `save` wrote it; GroError where it is of another kind of run, or alarms had ended it
        and still do."""
        plain = files.read_json(folder / "state.json")
        if plain.get("format") != 1:
            raise GroError(f"{folder}: written by another version of gro, which alone can go on from it")
        self._compare(folder, plain["processes"], plain.get("shard", 1))
        refreshed = {name: found for name, found in self._references().items() if name in plain["refreshed"]}
        for reference in refreshed.values():
            reference.refresh(self.policy)
        if plain.get("shard", 1) == 1:
            self.policy.load_trained(_read(folder / "weights.safetensors"))
            if self.critic is not None:
                self.critic.restore(folder)
            memory = _read(folder / "optimizer.safetensors")
            for name, reference in refreshed.items():
                reference.policy.load_trained(_read(folder / f"{name}.safetensors"))
        else:
            memory = self._memory_like(sharded_state.shapes_in(folder))
            sharded_state.read(self._weights(refreshed) | memory, folder)
        for who, descent in self.descents.items():
            mine = {key.partition(": ")[2]: t for key, t in memory.items() if key.startswith(f"{who}: ")}
            descent.load(plain["updates"][who], mine)
        for name, reference in self._references().items():
            known = folder / f"{name}-known.safetensors"
            if known.is_file():  # not where only this attempt measures against the start
                reference.remember(_read(known))
        self.source.load(plain["source"])
        self.recorder.load(plain["recorder"])
        if self.processes.any(self.recorder.ended is not None):
            raise GroError(self.recorder.ended)
        return Resumed(plain["step"], {name: float(value) for name, value in plain["state"].items()})

    def parts(self) -> dict[str, Tensor]:
        """What training changes, as the processes write it where each has a part."""
        return self._weights({n: r for n, r in self._references().items() if r.refreshed}) | self._memory()

    def _weights(self, refreshed: Mapping[str, Reference]) -> dict[str, Tensor]:
        models = {"policy": self.policy.trained()}
        models |= {} if self.critic is None else {"critic": self.critic.trained()}
        models |= {f"reference {name}": reference.policy.trained() for name, reference in refreshed.items()}
        return {f"{model}/{name}": tensor for model, tensors in models.items() for name, tensor in tensors.items()}

    def _memory(self) -> dict[str, Tensor]:
        """Of the optimizers."""
        return {f"{who}: {key}": t for who, descent in self.descents.items() for key, t in descent.tensors().items()}

    def _memory_like(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Room for what a state remembers of optimizers, cut as the weights are."""
        found: dict[str, Tensor] = {}
        for name in names:
            who, _, key = name.partition(": ")
            what, _, parameter = key.partition(" of ")
            if who in self.descents and parameter in self.descents[who].parameters:
                weight = self.descents[who].parameters[parameter]
                found[name] = torch.zeros(()) if what == "step" else torch.zeros_like(weight, requires_grad=False)
        return found

    def _compare(self, folder: Path, processes: int, shard: int) -> None:
        """GroError where going on from this state would only nearly repeat the run, and nobody has asked for that."""
        if (processes, shard) == (self.processes.size, self.shard):
            return
        before = f"{processes} processes, its weights cut over {shard}"
        now = f"{self.processes.size}, cut over {self.shard}"
        if not self.elastic:
            raise GroError(
                f"{folder}: this run was on {before}; here are {now}. That learns from the same groups, but rounds "
                "otherwise. Start as many processes, or allow it with distributed.elastic: true"
            )
        self.recorder.run.event("warning", f"goes on on other processes: before {before}; now {now}: rounding differs")

    def _references(self) -> dict[str, Reference]:
        """Each once."""
        found: dict[int, tuple[str, Reference]] = {}
        for name, reference in self.references.items():
            found.setdefault(id(reference), (name, reference))
        return dict(found.values())


class Keeper:
    """Told after every step; writes the state where that is due, and ends the run where somebody asked for it."""

    def __init__(
        self,
        run: Path,
        carried: Carried,
        *,
        every: int | None = None,
        export_every: int = 0,
        asked: Callable[[], str | None] = lambda: None,
        waited: Callable[[], float] = lambda: 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`every`: so many steps; None: after MINUTES, and where more time was spent waiting for people than a state
        costs, since they may well keep it waiting until it is stopped.  `export_every`: so many steps the model is
        exported, 0 for never.  `asked`: whether to stop, and because of what.  `waited`: seconds so far."""
        self.run, self.carried = run, carried
        self._every, self._export_every, self._asked, self._clock = every, export_every, asked, clock
        self._waited = waited
        self._since, self._waited_then, self._cost = clock(), waited(), 0.0
        self._writer: sharded_state.Writer | None = None

    def __call__(self, step: int, state: State) -> None:
        """Raises Interrupted, after the state was written, where somebody asked the run to stop; GroError likewise
        where an alarm has ended it."""
        processes = self.carried.processes
        exports = bool(self._export_every) and step % self._export_every == 0
        if exports:
            self.carried.check(step)
        if exports:
            export(self.carried.policy, self.run / CHECKPOINTS / f"{PREFIX}{step}", processes)
        alarm, why, due = self.carried.recorder.ended, self._asked(), self._due(step)
        for theirs in processes.join([(alarm, why, due)]) if processes.size > 1 else ():
            alarm, why, due = alarm or theirs[0], why or theirs[1], due or theirs[2]
        if alarm:
            self._end(alarm, step, state)
        if due or why:
            self.save(step, state)
        if why:
            self.finish()
            said = f"{why}: the state after step {step} is saved; the same command continues"
            raise Interrupted(said, saved=True, together=True)

    def save(self, step: int, state: State) -> None:
        """Writes the state after this step, and then removes the oldest; a GroError is raised in all processes.

        Where weights are cut this returns when they are copied, and what fails later is raised by the next one.
        """
        self.carried.check(step)
        begun = self._clock()
        if self.carried.shard > 1:
            self._begin(step, state)
        else:
            self._write_together(step, state)
        self._since, self._waited_then = self._clock(), self._waited()
        self._cost = self._since - begun

    def _end(self, alarm: str, step: int, state: State) -> None:
        """Raises GroError with the alarm, after the state was written unless weights are not finite."""
        try:
            self.save(step, state)
            self.finish()
        except GroError as error:
            raise GroError(f"{alarm}\n{error}") from error
        raise GroError(alarm)

    def finish(self) -> None:
        """Waits for a state that is being written."""
        if self._writer is not None and self._writer.finish() is not None:
            self._rotate()

    def _begin(self, step: int, state: State) -> None:
        if self._writer is None:
            self._writer = sharded_state.Writer(self.carried.processes)
        self.finish()
        final = self.run / STATE / f"{PREFIX}{step}"
        self._writer.begin(final, self.carried.parts(), lambda folder: self.carried.save(folder, step, state))

    def _rotate(self) -> None:
        if self.carried.processes.first:
            files.rotate(self.run / STATE, PREFIX, KEPT)

    def _write_together(self, step: int, state: State) -> None:
        fault = None
        try:
            if self.carried.processes.first:
                self._write(step, state)
        except GroError as error:
            if self.carried.processes.size == 1:
                raise
            fault = str(error)
        self.carried.processes.raise_together(fault)

    def _write(self, step: int, state: State) -> None:
        with files.new_directory(self.run / STATE / f"{PREFIX}{step}") as folder:
            self.carried.save(folder, step, state)
        self._rotate()

    def _due(self, step: int) -> bool:
        if self._every is not None:
            return step % self._every == 0
        return self._clock() - self._since >= 60 * MINUTES or self._waited() - self._waited_then > self._cost


def export(
    policy: Policy, path: Path, processes: Processes = ALONE, *, also: Callable[[Path], object] = lambda folder: None
) -> None:
    """Writes the model in Hugging Face format, and what else belongs beside it, whole or not at all; all processes
    together."""
    whole, fault = policy.whole(keep=processes.first, device=torch.device("cpu")), None
    try:
        if processes.first:
            with files.new_directory(path) as folder:
                whole.save(folder)
                also(folder)
    except GroError as error:
        fault = str(error)
    processes.raise_together(fault)


def newest(run: Path) -> tuple[Path | None, list[str]]:
    """The newest state from which the run can go on, and what is wrong with newer ones."""
    return files.newest_complete(run / STATE, PREFIX)


def _write(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Safetensors hold what does not share memory."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    needed = sum(t.nbytes for t in whole.values())
    with files.explained("write", path, needed):
        files.announce("write", path)
        try:
            save_file(whole, path)
        except SafetensorError as error:
            free = size_text(files.free_bytes(path))
            raise files.DiskError(f"cannot write {path}: {error} ({size_text(needed)} needed, {free} free)") from error


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise GroError(f"{path} cannot be read: {error}") from error
