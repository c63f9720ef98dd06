"""One pass over a model's weights: read, brought to what the adapter saw, merged, each while the next one is read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from recft.errors import ExportError, problem
from recft.models.kbit import planned, serialized, through_bits
from recft.models.shards import Piece
from recft.models.stock import Stock, Weight
from recft.models.tensor_files import Planned, Stored, read

__all__ = ["Bits", "WeightPass"]

_BLOCK = 1 << 17
"""Elements of a weight that are merged at a time."""

_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Bits:
    """Which layers are k-bit, and how.

    Attributes:
        kind: `int8`, `nf4` or `fp4`; empty where no layer is.
        double: whether the scales are quantized too.
        layers: their names.
    """

    kind: str = ""
    double: bool = False
    layers: frozenset[str] = frozenset()

    def hold(self, weight: Weight) -> bool:
        """Whether it is the weight of one of the layers."""
        return weight.is_matrix and weight.module in self.layers


@dataclass(frozen=True)
class WeightPass:
    """One pass over the weights.

    Attributes:
        stock: the weights.
        change: as in `models.merging.Merge`.
        heads: as there.
        dtype: that they come out in.
        seen: the layers whose weights the adapter saw quantized.
        written: the layers that are written quantized.
    """

    stock: Stock
    change: Callable[[str, Tensor], Tensor]
    heads: Mapping[str, Tensor]
    dtype: torch.dtype
    seen: Bits
    written: Bits
    _read_into: _Ring = field(default_factory=lambda: _Ring(2))  # one is read while one is merged
    _merged_from: _Ring = field(default_factory=lambda: _Ring(1))
    _written_from: _Ring = field(default_factory=lambda: _Ring(2))  # one is made while one is written

    @property
    def quantizes(self) -> bool:
        """Whether any weight is quantized on the way."""
        return bool(self.seen.layers or self.written.layers)

    def values(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of every weight, each new in memory."""
        for weight, found in self._merged(self.stock.weights, reuse=False):
            yield weight.name, read(found) if isinstance(found, Stored) else found

    def pieces(self) -> list[Piece]:
        """What is written, in order."""
        return [Piece(weight.name, tuple(self._plan(weight))) for weight in self.stock.weights]

    def made(self, keys: Sequence[str]) -> Generator[Mapping[str, Tensor | Stored]]:
        """What each of the weights `keys` becomes in a file, in order.

        A tensor's memory is used again for the next but one.
        """
        weights = {weight.name: weight for weight in self.stock.weights}
        for weight, found in self._merged([weights[key] for key in keys], reuse=True):
            if self.written.hold(weight) and isinstance(found, Tensor):
                yield serialized(weight.name, found, self.written.kind, self.written.double)
            else:
                yield {weight.name: found}

    def _plan(self, weight: Weight) -> list[Planned]:
        if self.written.hold(weight):
            return planned(weight.name, weight.shape, self.written.kind, self.written.double)
        return [Planned(weight.name, self._dtype_of(weight), weight.shape)]

    def _dtype_of(self, weight: Weight) -> torch.dtype:
        return self.dtype if weight.dtype.is_floating_point else weight.dtype

    def _merged(self, weights: Sequence[Weight], reuse: bool) -> Iterator[tuple[Weight, Tensor | Stored]]:
        """These weights as they come out; one that only moves from file to file is said by its place.

        Raises:
            ExportError: they are all that there are, and merging changed none.
        """
        touched = {weight.name for weight in weights if self._is_touched(weight)}
        jobs = (partial(self._read, weight, weight.name in touched, reuse) for weight in weights)
        changed = len(weights) < len(self.stock.weights)
        for weight, found in zip(weights, _ahead(jobs), strict=True):
            if weight.name not in touched or isinstance(found, Stored):
                yield weight, found
                continue
            dtype = self._dtype_of(weight)
            place = self._written_from.take(weight.shape, dtype) if reuse else torch.empty(weight.shape, dtype=dtype)
            changed = self._change(weight, found, place, changed)
            yield weight, place
            del found, place
        if not changed:
            raise ExportError(
                problem(
                    "export",
                    "merging changed no weight",
                    "an adapter changes weights",
                    "tune again: the adapter is empty or of another base",
                )
            )

    def _read(self, weight: Weight, touched: bool, reuse: bool) -> Tensor | Stored:
        """The weight as the base has it; all done where the adapter leaves it alone."""
        dtype, stored = self._dtype_of(weight), weight.stored
        if weight.name in self.heads:
            return self.heads[weight.name].detach().to(dtype)
        if stored is None:
            return torch.zeros(weight.shape, dtype=dtype)
        if not weight.dtype.is_floating_point:
            return read(stored, dtype)
        if touched:
            exact = weight.dtype in (torch.float32, stored.dtype) and stored.dtype is not None
            place = self._read_into.take(weight.shape, stored.dtype) if reuse and exact and stored.dtype else None
            return read(stored, stored.dtype if exact else weight.dtype, into=place)
        if self.seen.hold(weight):
            return through_bits(read(stored, weight.dtype), self.seen.kind, self.seen.double).to(dtype)
        if stored.dtype == dtype and weight.dtype in (torch.float32, dtype) and not self.written.hold(weight):
            return stored
        return read(stored, dtype, weight.dtype)

    def _change(self, weight: Weight, found: Tensor, place: Tensor, changed: bool) -> bool:
        """Puts the merged weight into `place`; whether merging has changed a value, now or before."""
        if self.seen.hold(weight):
            found = through_bits(found.to(weight.dtype), self.seen.kind, self.seen.double)
        for rows in self._blocks(weight.shape):
            before = self._merged_from.take(found[rows].shape, torch.float32).copy_(found[rows])
            kept = before if changed else before.clone()
            after = self._changed(weight.module, before, rows)
            changed = changed or not torch.equal(after, kept)
            place[rows].copy_(after)
        return changed

    @cached_property
    def _changed(self) -> Callable[[str, Tensor, slice], Tensor]:
        if self._in_blocks:
            return lambda module, weight, rows: cast("Any", self.change)(module, weight, rows=rows)
        return lambda module, weight, _rows: self.change(module, weight)

    @cached_property
    def _in_blocks(self) -> bool:
        return "rows" in inspect.signature(self.change).parameters

    def _blocks(self, shape: Sequence[int]) -> Iterator[slice]:
        """The rows of a matrix that are merged at a time: all, or as many as the processor's cache holds."""
        step = max(1, _BLOCK // shape[1]) if self._in_blocks else shape[0]
        return (slice(start, start + step) for start in range(0, shape[0], step))

    def _is_touched(self, weight: Weight) -> bool:
        """Whether the adapter changes the weight.

        Raises:
            ExportError: it changes a tied weight at one of its places.
        """
        if not weight.is_matrix or weight.name in self.heads:
            return False
        touched = [
            _computes(self.change, name.rpartition(".")[0], weight.shape) for name in (weight.name, *weight.tied)
        ]
        if weight.tied and any(touched):
            raise ExportError(
                problem(
                    "export",
                    f"the adapter changes '{weight.name}', which is tied to {', '.join(weight.tied)}",
                    "a tied weight is one tensor with two uses",
                    "tune with targets inside the blocks",
                )
            )
        return touched[0]


def _ahead(jobs: Iterable[Callable[[], _Made]]) -> Iterator[_Made]:
    """What each job gives, in order; while one result is used the next job runs."""
    with ThreadPoolExecutor(1) as worker:
        waiting: Future[_Made] | None = None
        for job in jobs:
            following = worker.submit(job)
            if waiting is not None:
                yield waiting.result()
            waiting = following
            del following
        if waiting is not None:
            yield waiting.result()


class _Ring:
    """Memory that is used in turn: fresh pages cost more than what is computed on them."""

    def __init__(self, slots: int) -> None:
        self._slots = [torch.empty(0, dtype=torch.uint8)] * slots
        self._next = 0

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor of any values; valid until the ring has come round."""
        n_bytes = torch.Size(shape).numel() * dtype.itemsize
        if len(self._slots[self._next]) < n_bytes:
            self._slots[self._next] = torch.empty(n_bytes, dtype=torch.uint8)
        found = self._slots[self._next][:n_bytes].view(dtype).view(tuple(shape))
        self._next = (self._next + 1) % len(self._slots)
        return found


def _computes(change: Callable[[str, Tensor], Tensor], module: str, shape: Sequence[int]) -> bool:
    """Whether `change` would change this module's weight: it is asked with one that nothing can be computed with."""
    probe = torch.empty(1).expand(tuple(shape)).as_subclass(_Probe)
    try:
        return change(module, probe) is not probe
    except _TouchedError:
        return True


class _TouchedError(Exception):
    """Something was computed with a probe."""


class _Probe(Tensor):
    """A weight that refuses to be computed with."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Nothing.

        Raises:
            _TouchedError: always.
        """
        raise _TouchedError
