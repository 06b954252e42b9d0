import { expect, test } from "vitest";
import type { RunDetail, Segment, Series } from "../../api/types";
import { LineBook, NOTHING_LIVE } from "../../charts/book";
import { chartsFor, type ChartSpec } from "../../charts/groups";
import { commonLine, deltas, overlay, type Compared } from "./lines";

const loss = chartsFor(["loss", "validation/eval_loss"]).find(({ id }) => id === "loss") as ChartSpec;

/** Training and validation losses at these steps. */
function book(steps: number[], validated: number[]): LineBook {
  const segment = (name: string, step: number[]): Segment => ({
    attempt: 1,
    rows: step.length,
    bucket: 1,
    axes: { step },
    end: { step: step.at(-1) ?? 0 },
    series: { [name]: { value: step.map(() => 2) } },
  });
  const table = (name: string, step: number[]) => ({ total: step.length, segments: [segment(name, step)] });
  const tables = { metrics: table("loss", steps), validation: table("validation/eval_loss", validated) };
  return new LineBook(NOTHING_LIVE, { run: "", x: "step", to_seq: 9, range: null, tables } as Series, "step", 0);
}

const run = (id: string, whole: LineBook, window = whole): Compared => ({
  detail: { id, config: {}, metrics: [] } as unknown as RunDetail,
  book: window,
  whole,
  color: "--c1",
  origin: 0,
});

test("a window without a run's points changes neither the line that is compared nor the legend", () => {
  const runs = [
    run("long", book([1, 2, 8, 9], [2, 9]), book([8, 9], [9])),
    run("short", book([1, 2], [2]), book([], [9])), // as the server's margin may give
  ];
  expect(commonLine(loss, runs)?.table).toBe("metrics");
  expect(deltas(loss, runs).map(({ label, parts }) => [label, parts])).toEqual([["short", []]]);
  expect(overlay(loss, runs).map(({ label, parts }) => `${label}: ${parts.map(({ raw }) => raw.x)}`)).toEqual([
    "long · training: 8,9",
    "long · validation: 9",
    "short · training: ",
    "short · validation: 9",
  ]);
});

test("validation is compared where a run has no training loss at all", () => {
  const runs = [run("one", book([1, 2], [2])), run("other", book([], [2]))];
  expect(commonLine(loss, runs)?.table).toBe("validation");
  expect(commonLine(loss, [runs[0] as Compared])?.table).toBe("metrics");
  expect(overlay(loss, runs).map(({ label }) => label)).not.toContain("other · training");
});

test("where in a bucket a loss was not finite is as unknown in the difference as in the loss", () => {
  const bucket: Segment = {
    attempt: 1,
    rows: 8,
    bucket: 4,
    axes: { step: [0, 4] },
    end: { step: 7 },
    series: {
      loss: { first: [1, 1], last: [1, 1], min: [1, 1], max: [1, 1], mean: [1, 1], count: null, nonfinite: [0, 1] },
    },
  };
  const tables = { metrics: { total: 8, segments: [bucket] } };
  const series: Series = { run: "", x: "step", to_seq: 9, range: [0, 7], tables };
  const diverged = run("diverged", new LineBook(NOTHING_LIVE, series, "step", 0));
  const well = run("well", book([1, 2, 3, 4, 5], []));
  for (const runs of [
    [diverged, well],
    [well, diverged],
  ])
    expect(deltas(loss, runs)[0]?.parts[0]?.placed).toEqual(new Set([5.5]));
});
