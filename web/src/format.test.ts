import { expect, test } from "vitest";
import { formatBytes, formatCount, formatDuration, formatRange, formatValue } from "./format";

test("values keep four digits and say what they are", () => {
  const said = [
    0,
    2.3456789,
    -2.3456789,
    5,
    0.002,
    0.00012,
    12345.6,
    3.2e7,
    1e19,
    null,
    "NaN",
    Number.POSITIVE_INFINITY,
    "-Infinity",
  ].map((value) => formatValue(value as never));
  expect(said).toEqual(["0", "2.346", "−2.346", "5", "0.002", "1.20e−4", "12,346", "32 M", "1.00e19", "–", "NaN", "∞", "−∞"]);
});

test("counts, sizes and times", () => {
  expect([500, 9_999, 12_345, 30_512_128, 2e9].map(formatCount)).toEqual(["500", "9,999", "12.3 k", "30.5 M", "2 G"]);
  expect(
    [999, 1000, 4096, 261_644, 999_600, 99.4e6, 99.6e6, 1.5e9, 3e15, null].map((bytes) => formatBytes(bytes)),
  ).toEqual([
    "999 B",
    "1.0 kB",
    "4.1 kB",
    "262 kB",
    "1.0 MB",
    "99 MB",
    "100 MB",
    "1.5 GB",
    "3000 TB",
    "–",
  ]);
  expect([3.25, 42, 60, 200, 7500, 273_600, null].map((seconds) => formatDuration(seconds))).toEqual([
    "3.3 s",
    "42 s",
    "1 min",
    "3 min 20 s",
    "2 h 5 min",
    "3 d 4 h",
    "–",
  ]);
  expect([formatRange([118, 163]), formatRange([60, 61]), formatRange(null)]).toEqual([
    "2 min – 2 min 40 s",
    "1 min",
    "–",
  ]);
});
