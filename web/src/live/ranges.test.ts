import { expect, test } from "vitest";
import { Ranges } from "./ranges";

test("numbers in order make one range", () => {
  const held = new Ranges();
  for (let seq = 1; seq <= 10_000; seq++) held.add(seq);
  expect(held.ranges).toEqual([[1, 10_000]]);
  expect([held.count, held.duplicates]).toEqual([10_000, 0]);
});

test("holes stay visible, are filled, and duplicates are counted", () => {
  const held = new Ranges();
  for (const seq of [5, 6, 9, 2, 6, 1]) held.add(seq);
  expect(held.ranges).toEqual([
    [1, 2],
    [5, 6],
    [9, 9],
  ]);
  expect([held.count, held.duplicates]).toEqual([5, 1]);
  for (const seq of [3, 4, 8, 7, 7]) held.add(seq);
  expect(held.ranges).toEqual([[1, 9]]);
  expect([held.count, held.duplicates]).toEqual([9, 2]);
});
