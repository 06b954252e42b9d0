// A run's curves from the server: reduced to what can be drawn, or every row of them, which a file is made from.
import { useDebouncedValue } from "@mantine/hooks";
import { useMemo } from "react";
import { get, runPath } from "../api/client";
import type { BucketColumn, Num, RawColumn, Segment, Series, Table } from "../api/types";
import type { XAxis } from "./book";
import type { Window } from "./content";

/** Curves over `x` in at most about `points` buckets: within a window and half its width around it, or of the whole run. */
export function fetchSeries(
  id: string,
  { x, metrics, window, points }: { x: XAxis; metrics?: string; window: Window; points: number },
  signal: AbortSignal,
): Promise<Series> {
  const query = new URLSearchParams({ ...(metrics === undefined ? {} : { metrics }), x, points: String(points) });
  if (window) {
    const margin = (window[1] - window[0]) / 2; // room to move before the next answer
    query.set("from", String(window[0] - margin));
    query.set("to", String(window[1] + margin));
  }
  return get<Series>(`${runPath(id)}/series?${query}`, signal);
}

/** The window once it has come to rest; null, all of it, until then where it was of another axis: asked for as a pair. */
export function useSettled(x: XAxis, window: Window): Window {
  const pair = useMemo(() => ({ x, window }), [x, window]);
  const [settled] = useDebouncedValue(pair, 150);
  return settled.x === x ? settled.window : null;
}

/** The server gives up to 4,000 rows of a table as they are, and with them each attempt's neighbours. */
const PAGE = 3_500;

/**
 * These metrics (as /series names them) row by row, wherever the window of `x` holds something; null: of the whole run.
 *
 * Throws an Error while the server has not read all of the log.
 */
export async function fetchRows(
  id: string,
  metrics: string[],
  x: XAxis,
  window: Window,
  ask = (query: string) => get<Series>(`${runPath(id)}/series?${query}`),
): Promise<Series> {
  const page = (axis: string, points: number, limits: Window): Promise<Series> => {
    const query = new URLSearchParams({ metrics: metrics.join(","), x: axis, points: String(points) });
    limits?.forEach((limit, end) => query.set(end ? "to" : "from", String(limit)));
    return ask(String(query));
  };
  const outline = await page(x, 20, window);
  if (outline.first_look) throw new Error("The server still reads this run's log. Try again in a moment.");
  const tables = Object.entries(outline.tables);
  const ends = tables.flatMap(([, { segments }]) =>
    segments.flatMap(({ axes, end }) => [axes.seq?.[0] ?? Number.POSITIVE_INFINITY, end.seq ?? 0]),
  );
  const found: Series["tables"] = Object.fromEntries(tables.map(([name]) => [name, { total: 0, segments: [] }]));
  const last = Math.max(0, ...ends);
  for (let from = Math.min(...ends); from <= last; from += PAGE) {
    const to = Math.min(last, from + PAGE - 1);
    const part = await page("seq", 4_000, [from, to]);
    for (const [name, { segments }] of Object.entries(part.tables))
      for (const segment of segments) append(found[name] as Table, segment, from, to);
  }
  return { ...outline, tables: found };
}

/** Adds a segment's rows from one event to another to those of its attempt. */
function append(table: Table, { attempt, axes, series }: Segment, from: number, to: number): void {
  const rows = (axes.seq ?? []).flatMap((seq, row) => (seq >= from && seq <= to ? [row] : []));
  if (!rows.length) return;
  let held = table.segments.at(-1);
  if (held?.attempt !== attempt) {
    held = { attempt, rows: 0, bucket: 1, axes: {}, end: {}, series: {} };
    table.segments.push(held);
  }
  for (const [name, values] of Object.entries(axes)) {
    const axis = (held.axes[name] ??= Array<number>(held.rows).fill(Number.NaN));
    for (const row of rows) axis.push(values[row] as number);
    held.end[name] = axis.at(-1) as number;
  }
  for (const [name, column] of Object.entries(series)) {
    const values = ((held.series[name] ??= { value: Array<null>(held.rows).fill(null) }) as RawColumn).value;
    for (const row of rows) values.push(rowOf(column, row));
  }
  held.rows += rows.length;
  table.total += rows.length;
  for (const column of Object.values(held.series) as RawColumn[])
    while (column.value.length < held.rows) column.value.push(null);
}

function rowOf(column: RawColumn | BucketColumn, row: number): Num | null {
  if (!("value" in column)) throw new Error("The server gave buckets in the place of rows.");
  return column.value[row] ?? null;
}
