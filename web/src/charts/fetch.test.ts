import { expect, test } from "vitest";
import type { Series } from "../api/types";
import { LineBook, NOTHING_LIVE } from "./book";
import { fetchRows } from "./fetch";

const ROWS = 9_000;

/** A log of two attempts, the second from step 5,001 on; a sparse metric; neighbours beyond the window, as the server gives. */
function server(query: string): Promise<Series> {
  const asked = new URLSearchParams(query);
  const [from, to] = [Number(asked.get("from") ?? 1), Number(asked.get("to") ?? ROWS)];
  const segments = [
    [1, 1, 6_000],
    [2, 6_001, ROWS],
  ].flatMap(([attempt = 0, first = 0, last = 0]) => {
    const [low, high] = [Math.max(first, from - 1), Math.min(last, to + 1)];
    if (low > high) return [];
    const seq = Array.from({ length: high - low + 1 }, (_, row) => low + row);
    const axes = { seq, step: seq.map((value) => (attempt === 1 ? value : value - 1_000)) };
    const end = { seq: high, step: axes.step.at(-1) as number };
    const sparse = seq.map((value) => (value % 1_000 === 0 ? value / 2 : null));
    const some = sparse.some((value) => value !== null);
    const series = { loss: { value: seq.map((value) => 1 / value) }, ...(some ? { sparse: { value: sparse } } : {}) };
    return [{ attempt, rows: seq.length, bucket: 1, axes, end, series }];
  });
  const total = segments.reduce((sum, { rows }) => sum + rows, 0);
  expect(asked.get("x") === "step" || total <= 4_000).toBe(true);
  const range: [number, number] = [1, ROWS - 1_000];
  return Promise.resolve({ run: "r", x: "step", to_seq: ROWS, range, tables: { metrics: { total, segments } } });
}

test("every row once, whatever the pages, and each attempt in one piece", async () => {
  const book = new LineBook(NOTHING_LIVE, await fetchRows("r", ["loss", "sparse"], "step", null, server), "step", 0);
  const [first, second] = book.tracks({ table: "metrics", key: "loss" });
  expect(first?.raw).toEqual({
    x: Array.from({ length: 6_000 }, (_, row) => row + 1),
    y: Array.from({ length: 6_000 }, (_, row) => 1 / (row + 1)),
  });
  expect([second?.raw.x[0], second?.raw.x.at(-1), second?.rows]).toEqual([5_001, 8_000, 3_000]);
  expect([first?.reduced, second?.reduced]).toEqual([false, false]);
  const sparse = book.tracks({ table: "metrics", key: "sparse" }).map(({ raw }) => raw);
  expect(sparse).toEqual([
    { x: [1, 2, 3, 4, 5, 6].map((k) => k * 1_000), y: [1, 2, 3, 4, 5, 6].map((k) => k * 500) },
    { x: [6_000, 7_000, 8_000], y: [3_500, 4_000, 4_500] },
  ]);
});

test("a log that has not been read yet gives no rows", async () => {
  const early = () => Promise.resolve({ first_look: true, tables: {} } as never);
  await expect(fetchRows("r", ["loss"], "step", null, early)).rejects.toThrow("still reads");
});
