"""Counting the bytes of tensors while they live."""

from __future__ import annotations

import gc
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """The most bytes that tensors made under it held at one time.

    >>> with LiveBytes() as live:
    ...     (torch.ones(1000) + torch.ones(1000)).sum()
    >>> live.peak
    12000
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        """Bytes."""
        self.largest = 0
        """Bytes of the largest of them."""
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}
        self._sum = 0
        """Of those in `_made`, some of which may be gone."""
        self._collects = True

    def __enter__(self) -> LiveBytes:
        gc.collect()
        self._collects = gc.isenabled()
        gc.disable()  # what it frees, and when, depends on everything else in the process
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if self._collects:
            gc.enable()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and notes the storages of its results that its arguments do not have."""
        kwargs = kwargs or {}
        known = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **kwargs)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (where := tensor.untyped_storage().data_ptr()) not in known:
                storage = tensor.untyped_storage()
                self._sum += storage.nbytes() - self._made.get(where, (None, 0))[1]
                self._made[where] = StorageWeakRef(storage), storage.nbytes()
                self.largest = max(self.largest, storage.nbytes())
        if self._sum > self.peak:
            self._made = {k: (ref, size) for k, (ref, size) in self._made.items() if not ref.expired()}
            self._sum = sum(size for _, size in self._made.values())
            self.peak = max(self.peak, self._sum)
        return result
