import { expect, test } from "vitest";
import type { PlotLine } from "./content";
import { drawMarks, drawReferences, type Canvas } from "./draw";

interface Text {
  text: string;
  left: number;
  right: number;
  y: number;
}

/** A plot of 200 by 100 pixels at (50, 10), x and y in pixels from its lower left corner; letters are 6 pixels wide. */
function canvas(): { canvas: Canvas; texts: Text[] } {
  const texts: Text[] = [];
  const ctx = {
    textAlign: "left",
    measureText: (text: string) => ({ width: 6 * text.length }),
    fillText(text: string, x: number, y: number) {
      const left = this.textAlign === "center" ? x - 3 * text.length : x;
      texts.push({ text, left, right: left + 6 * text.length, y });
    },
    beginPath() {},
    moveTo() {},
    lineTo() {},
    stroke() {},
    fill() {},
    setLineDash() {},
  };
  const area = { left: 50, top: 10, width: 200, height: 100, from: 0, to: 200 };
  const places = { x: (value: number) => 50 + value, y: (value: number) => 110 - value };
  const made = { ctx: ctx as unknown as CanvasRenderingContext2D, ratio: 1, font: "", logY: false, color: () => "" };
  return { canvas: { ...made, ...area, ...places }, texts };
}

const line = (x: number[], y: number[], marks: [number, number][] = []): PlotLine => ({
  id: "",
  label: "",
  color: "",
  dots: false,
  parts: [{ raw: { x, y }, smooth: null, marks: marks.map(([at, value]) => ({ x: at, value })) }],
});

test("names of marks stand apart, whichever line they belong to, and within the plot", () => {
  const { canvas: area, texts } = canvas();
  const bad = (xs: number[]): [number, number][] => xs.map((x) => [x, Number.NaN]);
  drawMarks(area, [line([], [], bad([0, 3, 60, 200])), line([], [], bad([10, 55, 150, 195]))]);
  expect(texts.map(({ text }) => text)).toEqual(["NaN", "NaN", "NaN", "NaN"]);
  expect(texts.map(({ left }) => left)).toEqual([50, 96, 191, 232]);
  for (const { left, right } of texts) {
    expect(left).toBeGreaterThanOrEqual(50);
    expect(right).toBeLessThanOrEqual(250);
  }
  const { canvas: other, texts: both } = canvas();
  drawMarks(other, [line([], [], [[100, Number.POSITIVE_INFINITY], [100, Number.NEGATIVE_INFINITY]])]);
  expect(both.map(({ text }) => text)).toEqual(["∞", "−∞"]);
});

test("a reference's name makes way for curves and for other names", () => {
  const name = (lines: PlotLine[]): number[] => {
    const { canvas: area, texts } = canvas();
    drawReferences(area, [{ label: "a", value: 50 }, { label: "b", value: 55 }], lines);
    return texts.map(({ left }) => left);
  };
  const [right, left, middle] = [246 - 24, 54, 138];
  expect(name([])).toEqual([right, left]);
  expect(name([line([160, 200], [55, 55])])).toEqual([left, middle]);
  const everywhere = line([0, 200], [55, 55]);
  expect(name([everywhere])).toEqual([right, left]); // under the curve then
});
