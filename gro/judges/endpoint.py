"""Questions to an endpoint that speaks the chat-completions protocol."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from gro.errors import GroError
from gro.judges.judge import CUT_OFF, Keep, Reply
from gro.judges.spec import JudgeSettings
from gro.rewards.exchange import FAILED, Answer, NotHttpError, TooLongError, post

LONGEST_WAIT = 60.0
"""Seconds between two attempts, at most, whatever the endpoint asks for."""
_TRY_AGAIN = frozenset((408, 409, 425, 429))
"""Answers that, like any 5xx, say: not now."""
_HOPELESS = {
    401: "it refuses the key",
    403: "it refuses the key",
    404: "there is no such address or model",
}
"""Answers that every question would get."""


class _NotNowError(Exception):
    """Trying again may help; after so many seconds, where the endpoint says so."""

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


class _NoReplyError(Exception):
    """Trying again would not help."""


class Endpoint:
    """A backend that asks over HTTP, several questions at once."""

    breaks = True

    def __init__(self, settings: JudgeSettings, *, sleep: Callable[[float], object] | None = None) -> None:
        """Raises GroError where the key is not in the environment.  sleep: how it waits between attempts."""
        assert settings.base_url is not None
        self._settings, self._stopped = settings, threading.Event()
        self._sleep = sleep or self._stopped.wait
        self._url = f"{settings.base_url.rstrip('/')}/chat/completions"
        self._key = ""
        if settings.key_env is not None:
            self._key = os.environ.get(settings.key_env, "").strip()
            if not self._key:
                raise GroError(f"judge.key_env: there is no environment variable {settings.key_env!r} with a key")
        sampling: dict[str, Any] = {
            "temperature": settings.temperature,
            "max_tokens": settings.max_new_tokens,
            "seed": settings.seed,
        }
        body = {"model": settings.model, **sampling, **settings.body}
        self._body = {name: value for name, value in body.items() if value is not None}
        self.identity: Mapping[str, Any] = {"base_url": settings.base_url, **self._body}

    def reply(self, questions: Sequence[str], keep: Keep) -> list[Reply]:
        """Raises GroError for what every question would meet: a wrong key, address or model."""

        def one(question: str) -> Reply:
            reply = self._one(question)
            keep(question, reply)
            return reply

        self._stopped.clear()
        with ThreadPoolExecutor(self._settings.parallel) as threads:
            running = [threads.submit(one, question) for question in questions]
            try:
                return [future.result() for future in running]
            except BaseException:
                self._stopped.set()  # those under way make no further attempt
                threads.shutdown(wait=False, cancel_futures=True)
                raise

    def close(self) -> None:
        """Holds nothing between calls."""

    def _one(self, question: str) -> Reply:
        messages = [{"role": "user", "content": question}]
        body = json.dumps({"messages": messages, **self._body}, ensure_ascii=True).encode()
        for attempt in range(self._settings.retries + 1):
            try:
                return self._read(post(urlsplit(self._url), body, self._headers(), self._settings.timeout))
            except (*FAILED, NotHttpError, _NotNowError) as error:
                if attempt == self._settings.retries or self._stopped.is_set():
                    times = f" ({attempt + 1} attempts)" if attempt else ""
                    return Reply(None, self._clean(f"{self._url}: {str(error) or type(error).__name__}{times}"))
                asked_for = error.wait if isinstance(error, _NotNowError) else None
                wait = 0.5 * 2**attempt if asked_for is None else asked_for
                self._sleep(min(wait, LONGEST_WAIT))
            except (TooLongError, _NoReplyError) as error:
                return Reply(None, self._clean(f"{self._url}: {error}"))
        raise AssertionError("unreachable: the last attempt returns")

    def _headers(self) -> dict[str, str]:
        key = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        return {"Accept": "application/json", **key}

    def _clean(self, text: str) -> str:
        """Without the key, which some endpoints repeat when they refuse it."""
        return text.replace(self._key, "…") if self._key else text

    def _read(self, answer: Answer) -> Reply:
        status = answer.status
        if status == 200:
            return _reply(answer.body)
        said = answer.said
        if status in _HOPELESS:
            raise GroError(self._clean(f"judge: {self._url} answers {said}: {_HOPELESS[status]}"))
        if 300 <= status < 400:
            raise GroError(f"judge: {self._url} redirects to {answer.headers.get('location')!r}; give that address")
        if status >= 500 or status in _TRY_AGAIN:
            raise _NotNowError(said, _seconds(answer.headers.get("retry-after")))
        raise _NoReplyError(said)


def _reply(body: bytes) -> Reply:
    """The text of a good answer; anything else may be a hiccup, and is asked for again."""
    shown = repr(body[:80].decode(errors="replace"))
    try:
        choice = json.loads(body)["choices"][0]
        text, finish = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _NotNowError(f"the answer is no chat completion, but {shown}") from error
    if not isinstance(text, str):
        raise _NotNowError(f"the answer has no text, but {shown}")
    # JSON can hold half of a surrogate pair, which no file can.
    text = text.encode("utf-8", "replace").decode()
    return Reply(text, CUT_OFF if finish == "length" else "")


def _seconds(retry_after: str | None) -> float | None:
    """Of the header Retry-After, where it is a number; it may also be a date, which is not worth a clock."""
    try:
        seconds = float(retry_after or "")
    except ValueError:
        return None
    return seconds if 0 <= seconds < float("inf") else None
