"""The rows of a data set as groups of token ids, held compactly."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gro.data.scan import ScanReport
from gro.data.spec import DataSpec, Kind
from gro.types import Completion, Finish, Group, Prompt


@dataclass(frozen=True, slots=True, eq=False)
class EncodedCompletion:
    """A completion in compact form."""

    ids: np.ndarray
    """int32 [T]."""
    trained: np.ndarray | None
    """bool [T]; None: all."""
    label: float | None
    """Its reward; None: a demonstration; NaN: pending."""
    finish: Finish


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """A row in compact form: token ids as int32."""

    key: int
    prompt: np.ndarray
    completions: tuple[EncodedCompletion, ...]
    row: Mapping[str, Any]
    digest: bytes
    prompt_digest: bytes


class Dataset(Sequence[Group]):
    """The groups of a data set, and what was found while they were made.

    A group's `prompt.key` is the row's number over all files, from 0; `prompt.row` has all columns of the row, names
    mapped by `columns`, and as "prompt" the prompt as it was presented: text, or a list of messages.
    """

    def __init__(
        self,
        spec: DataSpec,
        records: Sequence[Record],
        report: ScanReport,
        *,
        ends: frozenset[int] = frozenset(),
        template_sha256: str | None = None,
    ) -> None:
        self.spec, self.report, self.ends, self.template_sha256 = spec, report, ends, template_sha256
        self._records = records

    @property
    def kind(self) -> Kind:
        """The dataset type, never "auto"."""
        return self.report.kind

    @property
    def pending(self) -> bool:
        """Whether the completions have yet to be judged."""
        return any(c.label is not None and math.isnan(c.label) for c in self._records[0].completions)

    def rewards(self) -> Iterator[tuple[int, tuple[float | None, ...]]]:
        """Every row's key with the rewards of its completions as the file gives them, without making groups."""
        return ((r.key, tuple(c.label for c in r.completions)) for r in self._records)

    def lengths(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Every row's tokens: of its prompt and of each completion, without making groups."""
        return ((len(r.prompt), tuple(len(c.ids) for c in r.completions)) for r in self._records)

    def endings(self) -> Iterator[tuple[int, int, bool]]:
        """Of every completion its row's key, its last token, and whether that carries loss."""
        return (
            (r.key, int(c.ids[-1]), c.trained is None or bool(c.trained[-1]))
            for r in self._records
            for c in r.completions
        )

    def beginnings(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Every row's key and first two tokens, which may be of its completion."""
        for r in self._records:
            ids = r.prompt[:2].tolist()
            yield r.key, tuple(ids if len(ids) == 2 or not r.completions else ids + r.completions[0].ids[:1].tolist())

    @property
    def sha256(self) -> str:
        """Of all files together: a run that resumes with other data is refused by it."""
        return hashlib.sha256("".join(digest for _, digest in self.report.files).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        record = self._records[index]
        completions = tuple(
            Completion(
                ids=tuple(c.ids.tolist()),
                trained=None if c.trained is None else tuple(c.trained.tolist()),
                role="target" if c.label is None else "sample",
                reward=None if c.label is None or math.isnan(c.label) else c.label,
                finish=c.finish,
            )
            for c in record.completions
        )
        prompt = Prompt(tuple(record.prompt.tolist()), key=record.key, row=record.row)
        margin = record.row.get("margin") if self.kind == "preference" else None
        return Group(prompt, completions, margin=None if margin is None else float(margin))

    def __iter__(self) -> Iterator[Group]:
        return (self[i] for i in range(len(self)))

    def overlap(self, other: Dataset) -> list[int]:
        """Keys of the other's rows that are also here; where one of the two has prompts only, of equal prompts."""
        by_prompt = "prompt_only" in (self.kind, other.kind)
        name = "prompt_digest" if by_prompt else "digest"
        mine = {getattr(r, name) for r in self._records}
        return [r.key for r in other._records if getattr(r, name) in mine]
