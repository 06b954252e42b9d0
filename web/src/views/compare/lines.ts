// The lines of several runs in one chart.
import type { RunDetail } from "../../api/types";
import type { LineBook, XAxis } from "../../charts/book";
import type { PlotLine } from "../../charts/content";
import { lossKind, type ChartLine, type ChartSpec } from "../../charts/groups";
import { interpolate, type Mark, type Polyline, type Track } from "../../charts/track";

export interface Compared {
  detail: RunDetail;
  /** What is drawn: of the window where there is more of it than `whole` has. */
  book: LineBook;
  whole: LineBook;
  color: string;
  /** As `originOf` says. */
  origin: number;
}

/** Subtracted from x, so that all runs begin together on the time axis. */
export function originOf(detail: RunDetail, x: XAxis): number {
  return x === "time" ? (detail.started ?? detail.created) : 0;
}

/** None of a training loss that is of another kind than the line: it belongs to another chart. */
export function tracksOf(run: Compared, line: ChartLine, book = run.book): Track[] {
  return line.of && line.of !== lossKind(run.detail) ? [] : book.tracks(line);
}

/** The first line that all of the runs have, wherever the window is; else the first. */
export function commonLine(spec: ChartSpec, runs: Compared[]): ChartLine | undefined {
  return spec.lines.find((line) => runs.every((run) => tracksOf(run, line, run.whole).length)) ?? spec.lines[0];
}

/** A line for each that a run has, without parts where none of it is in the window. */
export function overlay(spec: ChartSpec, runs: Compared[]): PlotLine[] {
  return runs.flatMap((run) =>
    spec.lines.flatMap((line): PlotLine[] => {
      if (!tracksOf(run, line, run.whole).length) return [];
      const suffix = spec.lines.length > 1 ? ` · ${line.label}` : "";
      return [
        {
          id: `${run.detail.id}/${line.table}/${line.key}`,
          label: run.detail.id + suffix,
          color: run.color,
          dots: line.dots ?? false,
          ...(line.table === "validation" && spec.lines.length > 1 ? { dash: [4, 3] } : {}),
          parts: tracksOf(run, line).map(({ raw, smooth, marks, placed }) => ({
            raw: shift(raw, run.origin),
            smooth: spec.smoothed && line.table === "metrics" ? shift(smooth, run.origin) : null,
            marks: marks.map((mark) => ({ ...mark, x: mark.x - run.origin })),
            placed: new Set([...placed].map((at) => at - run.origin)),
          })),
        },
      ];
    }),
  );
}

/** Each run's smoothed loss in training (else in validation, where that is what all have), less the first run's. */
export function deltas(spec: ChartSpec, runs: Compared[]): PlotLine[] {
  const common = commonLine(spec, runs);
  const baseline = runs[0];
  if (!common || !baseline) return [];
  const smooth = (run: Compared): { line: Polyline; marks: Mark[]; near: number[] }[] =>
    tracksOf(run, common).map((track) => ({
      line: shift(track.smooth, run.origin),
      marks: track.marks.map((mark) => ({ ...mark, x: mark.x - run.origin })),
      near: track.marks.filter(({ x }) => track.placed.has(x)).map(({ x }) => x - run.origin),
    }));
  const against = smooth(baseline).toReversed(); // where attempts overlap, the latest one counts
  const notFinite = new Map(against.flatMap(({ marks }) => marks.map(({ x }) => [x, { x, value: Number.NaN }])));
  return runs.slice(1).map((run) => ({
    id: `${run.detail.id}/delta`,
    label: run.detail.id,
    color: run.color,
    dots: false,
    parts: smooth(run).map(({ line, marks: own, near }) => {
      const points: [number, number][] = [];
      // What is not finite in either run is not finite in the difference: a gap with a mark, as in the run's own line.
      const marks = new Map(own.map((mark) => [mark.x, mark]));
      line.x.forEach((at, index) => {
        const mark = notFinite.get(at);
        if (mark) marks.set(at, mark);
        const other = against.map((candidate) => interpolate(candidate.line, at)).find((value) => value !== null);
        if (mark || other === undefined || other === null) return;
        points.push([at, (line.y[index] as number) - other]);
      });
      for (const x of marks.keys()) points.push([x, Number.NaN]);
      points.sort(([a], [b]) => a - b);
      const raw: Polyline = { x: points.map(([x]) => x), y: points.map(([, y]) => y) };
      const placed = new Set([...near, ...against.flatMap((other) => other.near)]);
      return { raw, smooth: null, marks: [...marks.values()].sort((a, b) => a.x - b.x), placed };
    }),
  }));
}

function shift(line: Polyline, origin: number): Polyline {
  return origin ? { x: line.x.map((x) => x - origin), y: line.y } : line;
}
