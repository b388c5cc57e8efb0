"""`gro label`: what is to be labelled is made before the server starts, so that the server needs no model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gro.data.files import file_format
from gro.errors import GroError
from gro.labels.answers import kind_named
from gro.labels.reading import kind_of
from gro.labels.store import Store
from gro.web.label.pages import routes
from gro.web.label.rows import read_items
from gro.web.label.waiting import WaitingRun
from gro.web.serve import serve

LABELS = Path("labels.db")
"""Where labels go if nothing else is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the command was given."""

    data: Path | None
    labels: Path
    kind: str | None = None
    name: str = ""
    per_item: int = 1
    model: str | None = None
    n: int | None = None
    limit: int | None = None
    temperature: float | None = None
    max_new_tokens: int | None = None
    reward_model: Path | None = None
    port: int = 0
    seed: int = 0
    browser: bool = True

    @property
    def of_samples(self) -> list[str]:
        """The options that were given and say how a model is sampled from."""
        said = {"-n": self.n, "--limit": self.limit}
        said |= {"--temperature": self.temperature, "--max-new-tokens": self.max_new_tokens}
        return [option for option, value in said.items() if value is not None]


def run_label(asked: Asked) -> None:
    """Prepares the labels' file and serves the page until Ctrl-C."""
    run = WaitingRun(asked.data) if asked.data is not None and asked.data.is_dir() else None
    store = prepare(asked) if run is None else _of_run(run, asked)
    try:
        wanted, done = store.read("SELECT count(*), coalesce(sum(done > 0), 0) FROM items")[0]
        items = "1 item" if wanted == 1 else f"{wanted} items"
        print(f"{store.path}: {items} to label as {store.kind.name}, {done} with labels")
        serve(routes(store, asked.name, run), port=asked.port, open_browser=asked.browser)
    finally:
        store.close()


def _of_run(run: WaitingRun, asked: Asked) -> Store:
    given = {"--labels": asked.labels != LABELS, "--kind": asked.kind, "--per-item": asked.per_item != 1}
    given |= {"--model": asked.model, "--reward-model": asked.reward_model}
    given |= {"--seed": asked.seed}
    if wrong := [*(option for option, value in given.items() if value), *asked.of_samples]:
        raise GroError(f"{wrong[0]}: {run.path} is a run, whose recipe says what is asked, and of how many")
    return run.store()


def prepare(asked: Asked) -> Store:
    """The store, with everything in it that is to be labelled."""
    kind = kind_named(asked.kind or (kind_of(asked.labels).name if asked.labels.exists() else "pairs"))
    if asked.model is None and asked.of_samples:
        raise GroError(f"{asked.of_samples[0]}: it is of fresh samples: name the --model that gives them")
    if asked.data is None and asked.model is not None:
        raise GroError("--model needs prompts")
    if asked.data is None and not asked.labels.exists():
        raise GroError(f"{asked.labels} does not exist: give a file of prompts with completions to begin it")
    if not asked.labels.absolute().parent.is_dir():
        raise GroError(f"--labels: the folder {asked.labels.absolute().parent} does not exist")
    data = asked.data
    if data is not None and not data.exists():
        raise GroError(f"{data} does not exist; to label for a run, start gro train first")
    if asked.model is not None:
        from gro.web.label.material import sampled

        data = sampled(asked)
    elif data is not None and file_format(data) == "labels":
        raise GroError(f"{data} is a file of labels; to go on with it: gro label --labels {data}")
    items, left_out = read_items(data, kind) if data is not None else ([], {})
    for why, count in left_out.items():
        print(f"left out: {count} {why}")
    places = None
    if asked.reward_model is not None:
        from gro.web.label.material import least_certain_first

        places = least_certain_first(asked.reward_model, items)
    store = Store(asked.labels, kind.name, per_item=asked.per_item, seed=asked.seed)
    store.add(items, places)
    return store
