// A chart as a file: its points as CSV, its picture as PNG.
import type { PlotContent, PlotLine } from "./content";
import { bisect, interpolate } from "./track";

/** Every x at which some line was measured within the window (null: all of it), in order. */
export function pointsWithin(content: PlotContent, window: [number, number] | null): number[] {
  const [from, to] = window ?? content.range ?? [0, 0];
  const xs = content.lines.flatMap((line) =>
    line.parts.flatMap(({ raw, placed }) =>
      raw.x.slice(bisect(raw.x, from - 1e-9) + 1, bisect(raw.x, to) + 1).filter((x) => !placed?.has(x)),
    ),
  );
  return [...new Set(xs)].sort((a, b) => a - b);
}

/**
 * The x of a table's rows, in order: about `most` of those at which something was measured, evenly chosen, and every one
 * of what is not finite; `near`: those of them that no line was measured at, only somewhere about.
 */
export function rowsToTell(
  content: PlotContent,
  window: [number, number] | null,
  most: number,
): { rows: number[]; near: Set<number>; points: number } {
  const xs = pointsWithin(content, window);
  const measuredAt = new Set(xs);
  const [from, to] = window ?? content.range ?? [0, 0];
  const parts = content.lines.flatMap((line) => line.parts);
  const odd = new Set(parts.flatMap(({ marks }) => marks.slice(0, most).map(({ x }) => x)));
  const near = new Set(
    [...odd].filter((x) => !measuredAt.has(x) && x >= from && x <= to && parts.some(({ placed }) => placed?.has(x))),
  );
  const every = Math.ceil(xs.length / most);
  const chosen = xs.filter((x, index) => odd.has(x) || index === xs.length - 1 || index % every === 0);
  return { rows: [...chosen, ...near].sort((a, b) => a - b), near, points: xs.length };
}

/** What was measured at each x, by the latest attempt there. */
export function measured(line: PlotLine): Map<number, number> {
  const found = new Map<number, number>();
  for (const { raw, marks, placed } of line.parts) {
    raw.x.forEach((x, index) => placed?.has(x) || found.set(x, raw.y[index] as number));
    for (const { x, value } of marks) if (!placed?.has(x)) found.set(x, value);
  }
  return found;
}

/** A row for every point, a column for every line and one more for its smoothed values. */
export function toCsv(
  content: PlotContent,
  window: [number, number] | null,
  xName: string,
  timeOrigin: number | null,
): string {
  const smoothed = (line: PlotLine): boolean => line.parts.some(({ smooth }) => smooth);
  const smoothAt = (line: PlotLine, x: number): number | null =>
    line.parts
      .toReversed()
      .map(({ smooth }) => smooth && interpolate(smooth, x))
      .find((value) => value !== null) ?? null;
  const head = content.lines.flatMap((line) => [line.label, ...(smoothed(line) ? [`${line.label} (smoothed)`] : [])]);
  const values = content.lines.map(measured);
  const rows = pointsWithin(content, window).map((x) => [
    x - (timeOrigin ?? 0),
    ...content.lines.flatMap((line, index) => [
      values[index]?.get(x) ?? null,
      ...(smoothed(line) ? [smoothAt(line, x)] : []),
    ]),
  ]);
  return [[timeOrigin === null ? xName : "seconds", ...head], ...rows]
    .map((row) => `${row.map(cell).join(",")}\n`)
    .join("");
}

function cell(value: string | number | null): string {
  const text = value === null ? "" : String(value);
  return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** The plot with its title and its legend, on the chart's own ground. */
export async function toPng(
  plot: HTMLCanvasElement,
  title: string,
  legend: { label: string; color: string }[],
): Promise<Blob> {
  const css = getComputedStyle(document.body);
  const color = (name: string): string => css.getPropertyValue(name).trim();
  const ratio = plot.width / plot.clientWidth;
  const picture = document.createElement("canvas");
  const ctx = picture.getContext("2d") as CanvasRenderingContext2D;
  const font = (style: string): void => void (ctx.font = `${style} ${css.fontFamily}`);
  const [margin, line] = [12, 18];
  font("12px");
  let [x, row] = [margin, 0];
  const names = legend.map((entry) => {
    const width = ctx.measureText(entry.label).width + 32;
    if (x + width > plot.clientWidth && x > margin) [x, row] = [margin, row + 1];
    const place = { ...entry, x, row };
    x += width;
    return place;
  });
  const top = margin + line * (row + 2) + 8;
  picture.width = plot.width;
  picture.height = plot.height + top * ratio;
  ctx.fillStyle = color("--surface");
  ctx.fillRect(0, 0, picture.width, picture.height);
  ctx.drawImage(plot, 0, top * ratio);
  ctx.scale(ratio, ratio);
  ctx.fillStyle = color("--ink-1");
  font("600 13px");
  ctx.fillText(title, margin, margin + 11);
  font("12px");
  for (const entry of names) {
    const y = margin + line * (entry.row + 1) + 11;
    ctx.fillStyle = color(entry.color);
    ctx.fillRect(entry.x, y - 6, 9, 3);
    ctx.fillStyle = color("--ink-2");
    ctx.fillText(entry.label, entry.x + 14, y);
  }
  return new Promise((done, fail) =>
    picture.toBlob((blob) => (blob ? done(blob) : fail(new Error("The browser makes no picture of the chart.")))),
  );
}

export function download(blob: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
