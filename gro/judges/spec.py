"""What can be said about a judge.  Light to import: recipes are checked with it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from gro.errors import GroError, nearest
from gro.schema import CHECKED, Count, Index, NotNegative, Positive

Name = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True)
class JudgeSettings:
    """Which model judges, how it is asked, and how its verdict is read.

    >>> JudgeSettings(model="some-model", base_url="https://api.example.com/v1", key_env="EXAMPLE_KEY")
    """

    __pydantic_config__: ClassVar[ConfigDict] = CHECKED

    model: Name
    """A folder in Hugging Face format, a hub name or a run, decoded here; with base_url, the endpoint's name for it."""
    base_url: Name | None = None
    """An endpoint that speaks the chat-completions protocol, up to and without /chat/completions."""
    key_env: Name | None = None
    """The environment variable with the endpoint's key.  The key itself stands in no file and no message."""
    kind: Literal["pairs", "scores"] = "pairs"
    """pairs: which of two answers is better, asked in both orders.  scores: how good one answer is."""
    template: Name | None = None
    """A file with a Jinja template of the question; None: the built-in one."""
    verdict: Name | None = None
    """A regular expression for the last line of a reply, with one group: A, B or tie, or the score; None: `Verdict: A`,
    `Score: 7`."""
    scale: tuple[float, float] = (1.0, 10.0)
    """Lowest and highest score.  A score outside is no verdict."""
    against: Name | None = None
    """As a reward by pairs: the column with the answer that every completion is compared with; None: with the others of
    its group."""
    chat: bool | None = None
    """A model decoded here is asked in a user's turn; None: where it has a chat template."""
    temperature: NotNegative = 0.0
    """0: the most probable reply."""
    max_new_tokens: Count = 512
    """Room for reasons and verdict."""
    seed: Index = 0
    """Of the replies, where they are sampled."""
    timeout: Positive = 60.0
    """Seconds for one attempt at an endpoint, from connecting to the last byte."""
    retries: Index = 4
    """Further attempts, with growing waits, where the endpoint fails or is busy."""
    parallel: Count = 8
    """Questions under way at an endpoint at once."""
    body: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of an endpoint's request; null takes one of ours out."""
    cache: Name | None = None
    """A file (SQLite) in which replies are kept, so that no question is asked twice; None: they are not kept."""
    device: str = "auto"
    """Of a model decoded here."""

    def __post_init__(self) -> None:
        """Raises ValueError for what could not be asked or read."""
        if self.base_url is None:
            for name in ("key_env", "body"):
                if getattr(self, name):
                    raise ValueError(f"{name} belongs to an endpoint: give base_url too")
        else:
            address = urlsplit(self.base_url)
            if address.scheme not in ("http", "https") or not address.hostname:
                raise ValueError(f"base_url is http://host/path or https://host/path, not {self.base_url!r}")
            if address.username or address.password:
                raise ValueError("base_url has a name or password in it; give the key by key_env")
        if not self.scale[0] < self.scale[1]:
            raise ValueError(f"scale is the lowest and the highest score, not {list(self.scale)}")
        if self.verdict is not None:
            _check_pattern(self.verdict)

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "judge") -> JudgeSettings:
        """From a recipe or a file; GroError naming every wrong key."""
        try:
            return TypeAdapter(cls).validate_json(json.dumps(values))
        except ValidationError as error:
            raise GroError("\n".join(_line(where, e) for e in error.errors(include_url=False))) from error
        except (TypeError, ValueError) as error:
            raise GroError(f"{where}: {error}") from error


def problems(values: Mapping[str, Any], where: str) -> list[str]:
    """What is wrong with these settings, one line for each."""
    try:
        JudgeSettings.parse(values, where)
    except GroError as error:
        return str(error).splitlines()
    return []


def _check_pattern(pattern: str) -> None:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"verdict is no regular expression: {error}") from error
    if groups != 1:
        raise ValueError(f"verdict has {groups} groups in parentheses; expected one, around the verdict itself")


def _line(where: str, error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"])
    key = f"{where}.{place}" if place else where
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{key}: unknown key{nearest(place, [f.name for f in fields(JudgeSettings)])}"
    if error["type"] in ("missing", "missing_argument"):
        return f"{key}: missing; it has no default"
    if error["type"] == "value_error":
        return f"{key}: {error['msg'].removeprefix('Value error, ')}"
    return f"{key}: found {error['input']!r}; {error['msg'][0].lower()}{error['msg'][1:]}"
