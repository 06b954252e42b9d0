import { expect, test } from "vitest";
import type { Segment } from "../api/types";
import { Track, bisect, interpolate, nearest } from "./track";

const raw = (values: (number | string | null)[]): Segment =>
  ({
    attempt: 1,
    rows: values.length,
    bucket: 1,
    axes: { step: values.map((_, i) => i) },
    end: { step: values.length - 1 },
    series: { loss: { value: values } },
  }) as Segment;

test("non-finite values are gaps with marks, absent ones are nothing", () => {
  const track = Track.fromSegment(raw([2, "NaN", null, "-Infinity", 1]), "loss", "step", 0);
  expect(track.raw.x).toEqual([0, 1, 3, 4]);
  expect(track.raw.y).toEqual([2, Number.NaN, Number.NaN, 1]);
  expect(track.marks).toEqual([
    { x: 1, value: Number.NaN },
    { x: 3, value: Number.NEGATIVE_INFINITY },
  ]);
  expect(track.rows).toBe(4);
});

test("a bucket draws its extremes in the direction of travel, and marks a NaN inside", () => {
  const segment: Segment = {
    attempt: 2,
    rows: 8,
    bucket: 4,
    axes: { step: [0, 4] },
    end: { step: 7 },
    series: {
      loss: { first: [1, 3], last: [3, 1], min: [0, 0.5], max: [9, 4], mean: [3, 2], count: null, nonfinite: [0, 1] },
    },
  };
  const track = Track.fromSegment(segment, "loss", "step", 0);
  expect(track.raw).toEqual({ x: [0, 1, 2, 3, 4, 5, 6, 7], y: [1, 0, 9, 3, 3, 4, 0.5, 1] });
  expect(track.smooth).toEqual({ x: [1.5, 5.5], y: [3, 2] });
  expect(track.marks).toHaveLength(1);
  expect([...track.placed]).toEqual([1, 2, 3, 5, 6, 5.5]); // 0, 4 and 7 are where the buckets begin and the last ends
  expect([track.rows, track.reduced]).toEqual([8, true]);
});

test("smoothing is the debiased exponential average, and a bucket weighs as its rows", () => {
  const one = new Track(1, 0.9);
  for (const y of [1, 2, 3]) one.push(one.rows, y);
  const expected = (0.1 * (3 + 0.9 * 2 + 0.81 * 1)) / (1 - 0.9 ** 3);
  expect(one.smooth.y[2]).toBeCloseTo(expected, 12);
  const perplexity = new Track(1, 0.9, Math.exp);
  for (const y of [1, 2, 3]) perplexity.push(perplexity.rows, y);
  expect(perplexity.smooth.y[2]).toBeCloseTo(Math.exp(expected), 12);
  const rows = new Track(1, 0.9);
  for (let i = 0; i < 100; i++) rows.push(i, 5);
  expect(rows.smooth.y.at(-1)).toBeCloseTo(5, 12);
});

test("a long live track stays small and loses no extreme", () => {
  const track = new Track(1, 0.6);
  for (let i = 0; i < 200_000; i++) track.push(i, i === 123_456 ? 99 : i === 77_777 ? -7 : Math.sin(i / 5000));
  expect(track.raw.x.length).toBeLessThanOrEqual(6_001);
  expect(Math.max(...track.raw.y)).toBe(99);
  expect(Math.min(...track.raw.y)).toBe(-7);
  expect(track.raw.x[track.raw.y.indexOf(99)]).toBe(123_456);
  expect(track.rows).toBe(200_000);
  expect(track.reduced).toBe(true);
});

test("lookups", () => {
  expect([bisect([1, 2, 4], 0), bisect([1, 2, 4], 2), bisect([1, 2, 4], 9)]).toEqual([-1, 1, 2]);
  expect([nearest([1, 2, 4], 2.9), nearest([1, 2, 4], 3.1), nearest([], 1)]).toEqual([1, 2, -1]);
  const line = { x: [0, 2, 4], y: [0, 1, Number.NaN] };
  expect([interpolate(line, 1), interpolate(line, 3), interpolate(line, 5), interpolate(line, 2)]).toEqual([
    0.5,
    null,
    null,
    1,
  ]);
});
