"""Charts of a run: any stretch of its metrics in at most so many buckets, the extremes of all points kept."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from limner.runs.index import RunIndex, Table
from limner.runs.pyramid import Buckets, Pyramid, bucket_rows, bucket_starts

GROWING = ("epoch", "tokens", "captions")
"""Metrics that only grow within an attempt: charts may be drawn over them."""
AXES = ("step", "time", "seq", *GROWING)
VALIDATION = "validation/"
"""The prefix of the names of a validation's metrics; a training step's have none."""
_DIGITS = 7
"""Significant digits of bucketed numbers; raw points are given in full."""


def names(index: RunIndex) -> list[str]:
    """All metrics that the run has logged, as `series` knows them."""
    with index.lock:
        steps, checks = (index.tables[name].columns for name in ("metrics", "validation"))
        return [*steps, *(VALIDATION + name for name in checks)]


def series(
    index: RunIndex,
    wanted: Sequence[str] | None = None,
    x: str = "step",
    low: float | None = None,
    high: float | None = None,
    points: int = 1000,
) -> dict[str, Any]:
    """Metrics over ``x``, one segment an attempt (a resumed run may go back some steps: it is shown as it was).

    Args:
        wanted: names as of `names`; None: all. Unknown ones give nothing.
        x: one of `AXES`, which ``low`` and ``high`` (inclusive) speak of; one row beyond either end is given too,
            so that a line can be drawn to the edge of the view.
        points: the most buckets of a table.

    Returns:
        ``to_seq`` (later events are not in it), ``range`` of x over the whole run, and ``tables``: ``metrics`` and
        ``validation``, each with ``total`` rows in view and ``segments``. A segment has ``attempt``, ``rows``,
        ``bucket`` (rows in a bucket; 1: raw points), ``axes`` (each bucket's first row) and ``series``.

    Raises:
        ValueError: ``x`` is no axis.
    """
    if x not in AXES:
        raise ValueError(f"'{x}' is no axis; use one of: {', '.join(AXES)}.")
    with index.lock:
        tables = {}
        for name, table in index.tables.items():
            prefix = VALIDATION if name == "validation" else ""
            columns = {
                prefix + key: column
                for key, column in table.columns.items()
                if wanted is None or prefix + key in wanted
            }
            axes = _axes(table, index.tables["metrics"])
            tables[name] = _table(table, columns, axes, x, low, high, points)
        steps = _axes(index.tables["metrics"], index.tables["metrics"]).get(x)
        whole = None if steps is None or not len(steps) else [_number(np.nanmin(steps)), _number(np.nanmax(steps))]
        return {"x": x, "to_seq": index.last_seq, "range": whole, "tables": tables}


def sparkline(index: RunIndex, metric: str = "loss", points: int = 48) -> list[float | str | None]:
    """A metric of the whole run as a few means."""
    with index.lock:
        column = index.tables["metrics"].columns.get(metric)
        if column is None or not len(column):
            return []
        rows = bucket_rows(len(column), points)
        return _encoded(_means(column.view(0, len(column), rows)), _DIGITS)


def seconds_to_go(index: RunIndex, total_steps: int | None) -> list[float] | None:
    """The time to go as a range: this attempt's recent steps at their fastest and at their slowest pace."""
    with index.lock:
        table = index.tables["metrics"]
        if not total_steps or len(table) < 3 or index.last is None:
            return None
        recent = slice(max(0, len(table) - 256), len(table))
        same = table.head("attempt")[recent] == index.last["attempt"]
        steps, times = table.head("step")[recent][same], table.head("time")[recent][same].copy()
        for pause in index.pauses:  # paused time is no pace
            times[times > pause["from"]] -= (pause["to"] or pause["from"]) - pause["from"]
    if len(steps) < 3:
        return None
    cuts = np.unique(np.linspace(0, len(steps) - 1, min(9, len(steps))).astype(int))
    advance = np.diff(steps[cuts])
    paces = np.diff(times[cuts])[advance > 0] / advance[advance > 0]
    to_go = max(0, total_steps - int(steps[-1]))
    if not len(paces):
        return None
    # A quarter of the stretches may be faster or slower: one evaluation or one page fault says little.
    return [round(to_go * max(0.0, float(np.quantile(paces, q))), 1) for q in (0.25, 0.75)]


def _table(
    table: Table,
    columns: dict[str, Pyramid],
    axes: dict[str, np.ndarray],
    x: str,
    low: float | None,
    high: float | None,
    points: int,
) -> dict[str, Any]:
    spans = []
    if len(table) and x in axes:
        attempts = table.head("attempt")
        cuts = [0, *(np.flatnonzero(np.diff(attempts)) + 1).tolist(), len(table)]
        for start, stop in itertools.pairwise(cuts):
            # fmax: a clock that was set back, or an absent value, must not break the search
            where = np.fmax.accumulate(axes[x][start:stop])
            first = 0 if low is None else int(np.searchsorted(where, low, "left"))
            last = len(where) if high is None else int(np.searchsorted(where, high, "right"))
            if first < last or 0 < first == last < len(where):
                spans.append((start + max(0, first - 1), start + min(len(where), last + 1)))
    total = sum(stop - start for start, stop in spans)
    rows = bucket_rows(total, max(1, points - len(spans)))
    segments = [_segment(table, columns, axes, start, stop, rows) for start, stop in spans]
    return {"total": total, "segments": segments}


def _segment(
    table: Table,
    columns: dict[str, Pyramid],
    axes: dict[str, np.ndarray],
    start: int,
    stop: int,
    rows: int,
) -> dict[str, Any]:
    starts = np.arange(start, stop) if rows == 1 else bucket_starts(start, stop, rows)
    shown = {}
    for name, column in columns.items():
        if not column.present[start:stop].any():
            continue
        if rows == 1:
            shown[name] = {"value": _encoded(column.values[start:stop], None, column.present[start:stop])}
        else:
            shown[name] = _bucketed(column, column.view(start, stop, rows), np.diff(np.append(starts, stop)))
    return {
        "attempt": int(table.head("attempt")[start]),
        "rows": stop - start,
        "bucket": rows,
        "axes": {name: _axis(values[starts]) for name, values in axes.items()},
        "end": {name: _axis(values[stop - 1 : stop])[0] for name, values in axes.items()},
        "series": shown,
    }


def _bucketed(column: Pyramid, buckets: Buckets, sizes: np.ndarray) -> dict[str, Any]:
    some = buckets.present > 0
    finite = buckets.present > buckets.nonfinite
    first = column.values[np.where(some, buckets.first_row, 0)]
    last = column.values[np.where(some, buckets.last_row, 0)]
    return {
        "first": _encoded(first, _DIGITS, some),
        "last": _encoded(last, _DIGITS, some),
        "min": _encoded(buckets.minimum, _DIGITS, finite),
        "max": _encoded(buckets.maximum, _DIGITS, finite),
        "mean": _encoded(_means(buckets), _DIGITS, finite),
        "count": None if (buckets.present == sizes).all() else buckets.present.tolist(),
        "nonfinite": None if not buckets.nonfinite.any() else buckets.nonfinite.tolist(),
    }


def _means(buckets: Buckets) -> np.ndarray:
    finite = buckets.present - buckets.nonfinite
    return np.where(finite > 0, buckets.total / np.maximum(1, finite), np.nan)


def _axes(table: Table, steps: Table) -> dict[str, np.ndarray]:
    """What the table's rows can be drawn over. Where validations lack a growing metric, it is told by the step."""
    axes: dict[str, np.ndarray] = {name: table.head(name) for name in ("step", "time", "seq")}
    for name in GROWING:
        if name in table.columns:
            axes[name] = table.columns[name].values
        elif name in steps.columns and len(table):
            known = steps.columns[name].present
            x, y = steps.head("step")[known], steps.columns[name].values[known]
            if len(x):
                order = np.argsort(x, kind="stable")
                axes[name] = np.interp(table.head("step"), x[order], y[order])
    return axes


def _axis(values: np.ndarray) -> list[Any]:
    if values.dtype.kind == "i":
        return values.tolist()
    return [_number(value) for value in np.round(values, 6)]


def _number(value: Any) -> Any:
    number = float(value)
    if not math.isfinite(number):
        return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def _encoded(values: np.ndarray, digits: int | None, present: np.ndarray | None = None) -> list[Any]:
    """As JSON values: absent ones None, non-finite ones as strings; rounded to ``digits`` significant ones."""
    if digits is not None:
        values = _rounded(values, digits)
    found: list[Any] = values.tolist()
    for k in np.flatnonzero(~np.isfinite(values)):
        found[k] = _number(values[k])
    if present is not None:
        for k in np.flatnonzero(~present):
            found[k] = None
    return found


def _rounded(values: np.ndarray, digits: int) -> np.ndarray:
    with np.errstate(all="ignore"):
        magnitude = np.floor(np.log10(np.abs(values)))
        places = digits - 1 - magnitude
        usable = np.isfinite(places) & (np.abs(places) <= 22)  # powers of ten are exact up to 10^22
        power = 10.0 ** np.abs(np.where(usable, places, 0))
        # An integer divided by an exact power of ten is the double nearest to the decimal: its text is short.
        rounded = np.where(places >= 0, np.rint(values * power) / power, np.rint(values / power) * power)
    return np.where(usable & np.isfinite(rounded), rounded, values)
