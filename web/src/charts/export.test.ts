import { expect, test } from "vitest";
import { EMPTY, type PlotContent, type PlotLine } from "./content";
import { rowsToTell, toCsv } from "./export";

const content: PlotContent = {
  ...EMPTY,
  range: [1, 4],
  lines: [
    {
      id: "a",
      label: 'say "loss", training',
      color: "",
      dots: false,
      parts: [
        {
          raw: { x: [1, 2, 3], y: [4, Number.NaN, 2] },
          smooth: { x: [1, 3], y: [4, 3] },
          marks: [{ x: 2, value: Number.POSITIVE_INFINITY }],
        },
        { raw: { x: [3, 4], y: [2.5, 1] }, smooth: { x: [3, 4], y: [2.5, 2] }, marks: [] },
      ],
    },
    { id: "b", label: "validation", color: "", dots: true, parts: [{ raw: { x: [4], y: [1.5] }, smooth: null, marks: [] }] },
  ],
};

test("every point, the latest attempt's where two passed one step, and what is not finite by its name", () => {
  expect(toCsv(content, null, "step", null)).toBe(
    [
      'step,"say ""loss"", training","say ""loss"", training (smoothed)",validation',
      "1,4,4,",
      "2,Infinity,3.5,",
      "3,2.5,2.5,",
      "4,1,2,1.5",
      "",
    ].join("\n"),
  );
});

test("only what is in the window, and a time as seconds since the start", () => {
  expect(toCsv(content, [3, 4], "time", 3).split("\n").slice(0, 3)).toEqual([
    'seconds,"say ""loss"", training","say ""loss"", training (smoothed)",validation',
    "0,2.5,2.5,",
    "1,1,2,1.5",
  ]);
});

test("what is only drawn at an x, to show a bucket's extremes, was not measured there", () => {
  const [line] = content.lines as [PlotLine];
  const part = { raw: { x: [1, 2, 3, 4], y: [5, 1, 9, 6] }, smooth: null, marks: [], placed: new Set([2, 3]) };
  const drawn = { ...content, lines: [{ ...line, label: "a", parts: [part] }] };
  expect(toCsv(drawn, null, "step", null)).toBe("step,a\n1,5\n4,6\n");
});

test("a table has one row for an x that one line was measured at and another is only drawn at", () => {
  const [line] = content.lines as [PlotLine];
  const nan = (x: number) => ({ x, value: Number.NaN });
  const raw = (x: number[]) => ({ x, y: x.map(() => 1) });
  const drawn = { raw: raw([1, 2, 3, 4]), smooth: null, marks: [nan(2), nan(3), nan(9)], placed: new Set([2, 3, 9]) };
  const exact = { raw: raw([1, 2]), smooth: null, marks: [] };
  const both = { ...content, lines: [{ ...line, parts: [drawn] }, { ...line, parts: [exact] }] };
  expect(rowsToTell(both, null, 200)).toEqual({ rows: [1, 2, 3, 4], near: new Set([3]), points: 3 });
  expect(rowsToTell(both, [1, 2], 1)).toEqual({ rows: [1, 2], near: new Set(), points: 2 });
});
