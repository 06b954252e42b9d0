"""Min-max pyramids: a column of a million numbers, shown in a few hundred buckets, and no spike lost.

A *column* is one metric of a run, one row a logged event. A row may lack the metric (absent) or hold a non-finite
number. Buckets of rows are described by where their first and last present values are, and by the minimum, maximum
and sum of the finite ones. Such descriptions can be merged, so those of 64 and of 4096 rows are kept, and any view
of any length is made of a few thousand of them: never of all rows, and never of a sample of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEVELS = (64, 4096)
"""Rows in a kept bucket; each a multiple of the one before."""

_NO_ROW = np.iinfo(np.int64).max


class Grower:
    """An array that grows at its end, in amortised constant time."""

    def __init__(self, dtype: np.typing.DTypeLike) -> None:
        self._data = np.empty(256, dtype)
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def array(self) -> np.ndarray:
        """What has been appended so far: a view, valid until the next `extend`."""
        return self._data[: self._length]

    @property
    def nbytes(self) -> int:
        return self._data.nbytes

    def extend(self, values: np.ndarray) -> None:
        end = self._length + len(values)
        if end > len(self._data):
            larger = np.empty(max(end, len(self._data) * 3 // 2), self._data.dtype)
            larger[: self._length] = self.array
            self._data = larger
        self._data[self._length : end] = values
        self._length = end


@dataclass
class Buckets:
    """Descriptions of consecutive buckets of rows; all arrays are as long as there are buckets.

    ``minimum`` and ``maximum`` are +inf and -inf, and ``first_row`` and ``last_row`` a huge number and -1, where
    a bucket has nothing to take them from.
    """

    first_row: np.ndarray
    last_row: np.ndarray
    minimum: np.ndarray
    maximum: np.ndarray
    total: np.ndarray
    """The sum of the finite values."""
    present: np.ndarray
    """Rows that have the metric, non-finite ones included."""
    nonfinite: np.ndarray

    def merge(self, starts: np.ndarray) -> Buckets:
        """The coarser buckets that begin at ``starts``: rising indices; the last one runs to the end."""
        return Buckets(
            np.minimum.reduceat(self.first_row, starts),
            np.maximum.reduceat(self.last_row, starts),
            np.minimum.reduceat(self.minimum, starts),
            np.maximum.reduceat(self.maximum, starts),
            np.add.reduceat(self.total, starts),
            np.add.reduceat(self.present, starts),
            np.add.reduceat(self.nonfinite, starts),
        )

    def slice(self, start: int, stop: int) -> Buckets:
        return Buckets(*(array[start:stop] for array in vars(self).values()))

    @staticmethod
    def join(parts: list[Buckets]) -> Buckets:
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return Buckets(*(np.concatenate(column) for column in columns))


class Pyramid:
    """A growing column and its kept buckets."""

    def __init__(self) -> None:
        self._values = Grower(np.float64)
        self._present = Grower(np.bool_)
        self._levels = [[Grower(dtype) for dtype in _LEVEL_DTYPES] for _ in LEVELS]

    def __len__(self) -> int:
        return len(self._values)

    @property
    def values(self) -> np.ndarray:
        """Every row's number; NaN also where it is absent."""
        return self._values.array

    @property
    def present(self) -> np.ndarray:
        """Whether the row has the metric."""
        return self._present.array

    @property
    def nbytes(self) -> int:
        growers = [self._values, self._present, *(grower for level in self._levels for grower in level)]
        return sum(grower.nbytes for grower in growers)

    def extend(self, values: np.ndarray, present: np.ndarray) -> None:
        """Appends rows; ``values`` where ``present`` is False do not matter."""
        self._values.extend(values if present.all() else np.where(present, values, np.nan))
        self._present.extend(present)

    def _build(self) -> None:
        """Completes the kept buckets; done when they are looked at, so that appending stays cheap."""
        for k, rows in enumerate(LEVELS):
            level = self._levels[k]
            below = LEVELS[k - 1] if k else 1
            done, whole = len(level[0]), len(self) // rows
            if whole > done:
                finer = self._kept(k - 1) if k else self._raw(done * rows, whole * rows)
                if k:
                    finer = finer.slice(done * rows // below, whole * rows // below)
                merged = finer.merge(np.arange(0, (whole - done) * rows // below, rows // below))
                for grower, array in zip(level, vars(merged).values(), strict=True):
                    grower.extend(array)

    def view(self, start: int, stop: int, rows: int) -> Buckets:
        """Buckets of ``rows`` rows over rows ``start`` to ``stop`` (exclusive), cut at multiples of ``rows``.

        The first and the last bucket may be shorter. Rows that are a multiple of a kept level's are cheap at any
        length; `bucket_rows` gives such a number.
        """
        assert 0 <= start < stop <= len(self) and rows >= 1
        self._build()
        level = max((k for k, size in enumerate(LEVELS) if rows % size == 0), default=None)
        if level is None:
            return self._raw(start, stop).merge(bucket_starts(start, stop, rows) - start)
        size = LEVELS[level]
        kept = len(self._levels[level][0]) * size
        inner_start = -(-start // rows) * rows
        inner_stop = min(stop, kept) // rows * rows
        if inner_start >= inner_stop:
            return self._raw(start, stop).merge(bucket_starts(start, stop, rows) - start)
        parts = []
        if start < inner_start:
            parts.append(self._raw(start, inner_start).merge(np.array([0])))
        inner = self._kept(level).slice(inner_start // size, inner_stop // size)
        parts.append(inner.merge(np.arange(0, (inner_stop - inner_start) // size, rows // size)))
        if inner_stop < stop:
            tail = self._raw(inner_stop, stop)
            parts.append(tail.merge(bucket_starts(inner_stop, stop, rows) - inner_stop))
        return Buckets.join(parts)

    def _raw(self, start: int, stop: int) -> Buckets:
        """Every row as a bucket of its own."""
        values, present = self.values[start:stop], self.present[start:stop]
        finite = np.isfinite(values)
        rows = np.arange(start, stop)
        return Buckets(
            np.where(present, rows, _NO_ROW),
            np.where(present, rows, -1),
            np.where(finite, values, np.inf),
            np.where(finite, values, -np.inf),
            np.where(finite, values, 0.0),
            present.astype(np.int64),
            (present & ~finite).astype(np.int64),
        )

    def _kept(self, level: int) -> Buckets:
        return Buckets(*(grower.array for grower in self._levels[level]))


_LEVEL_DTYPES = (np.int64, np.int64, np.float64, np.float64, np.float64, np.int64, np.int64)


def bucket_rows(rows: int, most_buckets: int) -> int:
    """Rows in a bucket, so that ``rows`` rows fit into ``most_buckets``; rounded up to a number that is cheap."""
    needed = max(1, -(-rows // max(1, most_buckets - 1))) if rows > most_buckets else 1
    for size in reversed(LEVELS):
        if needed > size:
            return -(-needed // size) * size
    return needed


def bucket_starts(start: int, stop: int, rows: int) -> np.ndarray:
    """The first rows of the buckets of `Pyramid.view`."""
    return np.concatenate([[start], np.arange((start // rows + 1) * rows, stop, rows)]).astype(np.int64)
