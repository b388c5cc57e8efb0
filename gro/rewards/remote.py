"""Rewards from a server: a documented question and answer in JSON over HTTP.

The question is a POST of `{"id": text, "prompts": [...], "completions": [...], "columns": {name: [...]}}`, the answer
`{"rewards": [number or null, ...]}` with one entry per completion; null says that the reward does not apply.  An answer
that has an `id` must have the question's: a late or repeated answer to another one is not taken.

A server that does not answer in time, or answers nonsense, fails the completions that it was asked about, each with the
reason.  The whole exchange has an end, and behind it stands the hard limit of the process that runs this.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import SplitResult, urlsplit

from gro.rewards.exchange import FAILED, NotHttpError, TooLongError, post
from gro.rewards.functions import OFFERED, Params, reward

TIMEOUT, RETRIES, BATCH = 10.0, 2, 32
"""The defaults of `remote`."""
LONGEST_WAIT = 8.0
"""Seconds between two attempts, at most; the first wait is half a second and each is twice the one before."""
_SLACK = 2.0
"""Seconds in which everything but the exchange itself must be done."""
_TRY_AGAIN = frozenset((408, 425, 429))
"""Answers that, like any 5xx, say: not now."""


class RemoteError(Exception):
    """The server gave no scores; trying again would not help."""


class _NotNowError(RemoteError):
    """Trying again may help."""


def _wait(attempt: int) -> float:
    return min(LONGEST_WAIT, 0.5 * 2**attempt)


def _limit(params: Params) -> float:
    """Seconds that one call may take in all: every attempt, and the waits between them."""
    retries = params.get("retries", RETRIES)
    return (retries + 1) * params.get("timeout", TIMEOUT) + sum(map(_wait, range(retries))) + _SLACK


def _check(params: Params) -> None:
    """Raises ValueError for parameters that no server could be asked with."""
    _address(str(params.get("url", "")))
    timeout, retries = params.get("timeout", TIMEOUT), params.get("retries", RETRIES)
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < float("inf"):
        raise ValueError(f"timeout is a number of seconds above 0, not {timeout!r}")
    if type(retries) is not int or not 0 <= retries <= 20:
        raise ValueError(f"retries is a whole number from 0 to 20, not {retries!r}")
    batch = params.get("batch", BATCH)
    if type(batch) is not int or batch < 1:
        raise ValueError(f"batch is a whole number above 0, not {batch!r}")
    _headers(params.get("headers_env"))


@reward(
    batch=lambda params: params.get("batch", BATCH),
    time_limit=_limit,
    options=("url", "timeout", "retries", "batch", "headers_env", "send"),
    check=_check,
)
def remote(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    *,
    url: str,
    timeout: float = 10.0,
    retries: int = 2,
    batch: int = 32,
    headers_env: Mapping[str, str] | None = None,
    send: Sequence[str] | None = None,
    **columns: Sequence[Any],
) -> list[Any]:
    """What a server says; a completion that it did not score has failed.

    url: where the question is posted.  timeout: seconds for one attempt, from connecting to the last byte.  retries:
    further attempts where the connection fails or the answer is 408, 425, 429 or 5xx, with growing waits.  batch: most
    completions of one question; several may be under way.  headers_env: header → name of the environment variable that
    holds its value, so that no key stands in a recipe.  send: columns of the data that go along; by default all.
    """
    about = {name: values for name, values in columns.items() if name not in OFFERED}
    if missing := set(send or ()) - about.keys():
        raise ValueError(f"send: no column {sorted(missing)[0]!r} in the data; it has {', '.join(about) or 'none'}")
    about = {name: values for name, values in about.items() if send is None or name in send}
    number = uuid.uuid4().hex
    question = {"id": number, "prompts": prompts, "completions": completions, "columns": about}
    try:
        body = json.dumps(question, allow_nan=False).encode()
        answer = _persist(_address(url), body, _headers(headers_env), timeout, retries)
        return _rewards(answer, number, len(completions))
    except (RemoteError, TypeError, ValueError) as error:
        return [RemoteError(f"{url}: {error}") for _ in completions]


def _persist(address: SplitResult, body: bytes, headers: Mapping[str, str], timeout: float, retries: int) -> bytes:
    for attempt in range(retries + 1):
        try:
            return _ask(address, body, headers, timeout)
        except (*FAILED, _NotNowError) as error:
            if attempt == retries:
                times = f" ({retries + 1} attempts)" if retries else ""
                raise RemoteError(f"{str(error) or type(error).__name__}{times}") from error
            time.sleep(_wait(attempt))
    raise AssertionError("unreachable: the last attempt returns or raises")


def _ask(address: SplitResult, body: bytes, headers: Mapping[str, str], timeout: float) -> bytes:
    """One attempt: the body of a good answer.  Raises what trying again may cure, and RemoteError for the rest."""
    try:
        answer = post(address, body, headers, timeout)
    except (TooLongError, NotHttpError) as error:
        raise RemoteError(str(error)) from error
    if 300 <= answer.status < 400:
        raise RemoteError(f"redirects to {answer.headers.get('location')!r}; give that address")
    if answer.status != 200:
        again = answer.status >= 500 or answer.status in _TRY_AGAIN
        raise _NotNowError(answer.said) if again else RemoteError(answer.said)
    return answer.body


def _rewards(text: bytes, number: str, count: int) -> list[Any]:
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RemoteError(f"the answer is not JSON: {text[:80].decode(errors='replace')!r}") from error
    if not isinstance(answer, dict) or not isinstance(answer.get("rewards"), list):
        raise RemoteError(f'the answer is not {{"rewards": [...]}}, but {text[:80].decode(errors="replace")!r}')
    if answer.get("id", number) != number:
        raise RemoteError("the answer has the id of another question")
    if len(answer["rewards"]) != count:
        raise RemoteError(f"the answer has {len(answer['rewards'])} rewards for {count} completions")
    return answer["rewards"]


def _address(url: str) -> SplitResult:
    """Raises ValueError where this is no address to ask, or has a password in it."""
    address = urlsplit(url)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise ValueError(f"url is http://host/path or https://host/path, not {url!r}")
    if address.username or address.password:
        raise ValueError("url has a name or password in it; give it by headers_env, so that it stands in no file")
    _ = address.port  # raises for one that is no number
    return address


def _headers(headers_env: Any) -> dict[str, str]:
    if not isinstance(headers_env or {}, Mapping):
        raise ValueError(f"headers_env is a mapping of headers to names of environment variables, not {headers_env!r}")
    headers = {}
    for header, variable in (headers_env or {}).items():
        if variable not in os.environ:
            raise ValueError(f"headers_env.{header}: there is no environment variable {variable!r}")
        headers[str(header)] = os.environ[variable]
    return headers
