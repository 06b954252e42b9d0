import { expect, test } from "vitest";
import type { Series } from "../api/types";
import { LiveTable } from "../live/table";
import { LineBook } from "./book";

const base: Series = {
  run: "r",
  x: "step",
  to_seq: 5,
  range: [1, 3],
  tables: {
    metrics: {
      total: 3,
      segments: [
        {
          attempt: 1,
          rows: 3,
          bucket: 1,
          axes: { step: [1, 2, 3], time: [100, 110, 120], tokens: [16, 32, 48] },
          end: { step: 3, time: 120, tokens: 48 },
          series: { loss: { value: [4, 3, 2] } },
        },
      ],
    },
    validation: {
      total: 1,
      segments: [
        {
          attempt: 1,
          rows: 1,
          bucket: 1,
          axes: { step: [2], time: [111] },
          end: { step: 2, time: 111 },
          series: { "validation/eval_loss": { value: [3.5] } },
        },
      ],
    },
  },
};

function live() {
  const tables = { metrics: new LiveTable(), validation: new LiveTable() };
  const event = (seq: number, attempt: number, step: number, type: string, fields: object) => ({
    seq,
    attempt,
    step,
    time: 100 + seq * 10,
    type,
    ...fields,
  });
  tables.metrics.append(event(5, 1, 3, "metrics", { loss: 99, tokens: 48 })); // in the base already
  tables.metrics.append(event(6, 1, 4, "metrics", { loss: 1.5, tokens: 64, seconds: { data: 0.1 } }));
  tables.metrics.append(event(7, 2, 3, "metrics", { loss: "NaN", tokens: 48 }));
  tables.metrics.append(event(8, 2, 4, "metrics", { loss: 1.4, tokens: 64 }));
  tables.validation.append(event(9, 2, 4, "validation", { eval_loss: 1.6 }));
  return tables;
}

test("live rows follow the base without a double, and a new attempt is a line of its own", () => {
  const tracks = new LineBook(live(), base, "step", 0).tracks({ table: "metrics", key: "loss" });
  expect(tracks.map((track) => [track.attempt, track.raw])).toEqual([
    [1, { x: [1, 2, 3, 4], y: [4, 3, 2, 1.5] }],
    [2, { x: [3, 4], y: [Number.NaN, 1.4] }],
  ]);
  expect(tracks[1]?.marks).toEqual([{ x: 3, value: Number.NaN }]);
});

test("the same rows on other axes; a validation stands where training stood", () => {
  const book = new LineBook(live(), base, "tokens", 0);
  expect(book.tracks({ table: "metrics", key: "loss" }).map((track) => track.raw.x)).toEqual([
    [16, 32, 48, 64],
    [48, 64],
  ]);
  expect(book.tracks({ table: "validation", key: "eval_loss" }).map((track) => track.raw)).toEqual([
    { x: [32], y: [3.5] },
    { x: [64], y: [1.6] },
  ]);
  expect(book.range()).toEqual([16, 64]);
  expect([book.stepAt(32), book.stepAt(56), book.xAt(2)]).toEqual([2, 4, 32]);
});

test("what comes later is added to the same lines, nested numbers included", () => {
  const tables = live();
  const book = new LineBook(tables, base, "step", 0);
  const key = { table: "metrics", key: "seconds.data" } as const;
  expect(book.tracks(key).map((track) => track.raw)).toEqual([{ x: [4], y: [0.1] }]);
  tables.metrics.append({ seq: 10, attempt: 2, step: 5, time: 0, type: "metrics", seconds: { data: 0.2 } });
  expect(book.tracks(key).map((track) => track.raw)).toEqual([
    { x: [4], y: [0.1] },
    { x: [5], y: [0.2] },
  ]);
  tables.metrics.dropThrough(8);
  expect(book.tracks(key)).toHaveLength(2);
  expect(tables.metrics.seq).toEqual([10]);
});
