import { expect, test } from "vitest";
import { logTicks, numberAxis } from "./axes";

/** What stands beside a logarithmic axis from one value to another. */
function labels(from: number, to: number): string[] {
  const { values } = numberAxis("y", true);
  const ticks = logTicks(Math.log10(from), Math.log10(to));
  return (values as (u: unknown, ticks: number[]) => string[])(null, ticks);
}

test("powers of ten, with twos and fives where there is room", () => {
  expect(labels(0.9, 2e6)).toEqual(["1", "10", "100", "1000", "10k", "100k", "1M"]);
  expect(labels(0.9, 60)).toEqual(["1", "2", "5", "10", "20", "50"]);
  expect(labels(1e-4, 2e-3)).toEqual(["1e−4", "2e−4", "5e−4", "0.001", "0.002"]);
});

test("a part of a decade has round ticks as well", () => {
  expect(labels(150, 300)).toEqual(["150", "200", "250", "300"]);
  expect(labels(180, 270)).toEqual(["180", "200", "220", "240", "260"]);
  expect(labels(2.63, 3.71)).toEqual(["2.8", "3", "3.2", "3.4", "3.6"]);
  expect(labels(4, 9)).toEqual(["4", "6", "8"]);
  expect(labels(2.9981, 2.9994)).toEqual(["2.9982", "2.9984", "2.9986", "2.9988", "2.999", "2.9992", "2.9994"]);
  expect(labels(2.88e-4, 3.06e-4)).toEqual(["2.9e−4", "2.95e−4", "3e−4", "3.05e−4"]);
});
