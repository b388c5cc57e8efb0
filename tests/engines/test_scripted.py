"""The engine that says what it is told."""

from __future__ import annotations

import pytest

from gro.engines.base import Engine, Sampling
from gro.engines.scripted import ScriptedEngine
from gro.types import Completion, Prompt


def test_it_returns_the_script_with_version_and_temperature() -> None:
    engine: Engine = ScriptedEngine(lambda prompt, i: Completion(ids=(prompt.key, i), logp=(-1.0, -2.0), finish="stop"))
    engine.update(3)
    seen: list[tuple[int, int]] = []
    groups = engine.generate(
        [Prompt((1,), key=7), Prompt((2,), key=8)],
        2,
        Sampling(temperature=0.5),
        seed=4,
        step=9,
        on_progress=lambda done, tokens: seen.append((done, tokens)),
    )
    assert [[c.ids for c in group] for group in groups] == [[(7, 0), (7, 1)], [(8, 0), (8, 1)]]
    assert {(c.version, c.temperature, c.finish) for group in groups for c in group} == {(3, 0.5, "stop")}
    assert seen == [(4, 8)]
    assert isinstance(engine, ScriptedEngine)
    assert engine.calls == [(4, 9)]
    engine.close()
    with pytest.raises(AssertionError):
        engine.generate([], 1, Sampling(), seed=0, step=0)
