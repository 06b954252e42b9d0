// The lines of one run: a base from the server (all points, reduced with their extremes) and the live rows after it.
import type { Segment, Series } from "../api/types";
import { LiveTable } from "../live/table";
import { Track, bisect, type Transform } from "./track";

export type XAxis = "step" | "time" | "epoch" | "tokens" | "captions";
export type TableName = "metrics" | "validation";

export interface LineKey {
  table: TableName;
  /** As the metrics event names it, without the table. */
  key: string;
  transform?: "exp";
}

/** As /series names it. */
export function nameOf({ table, key }: LineKey): string {
  return table === "validation" ? `validation/${key}` : key;
}

export interface LiveTables {
  readonly metrics: LiveTable;
  readonly validation: LiveTable;
}

/** For a run that is only looked at, not followed. */
export const NOTHING_LIVE: LiveTables = { metrics: new LiveTable(), validation: new LiveTable() };

const TRANSFORMS: Record<string, Transform> = { exp: Math.exp };

const NO_RANGE: [number, number] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];

interface Entry {
  tracks: Track[];
  lastSeq: number;
}

export class LineBook {
  readonly x: XAxis;
  private readonly store: LiveTables;
  private readonly base: Series;
  readonly smoothing: number;
  private readonly entries = new Map<string, Entry>();

  constructor(store: LiveTables, base: Series, x: XAxis, smoothing: number) {
    this.store = store;
    this.base = base;
    this.x = x;
    this.smoothing = smoothing;
  }

  get firstLook(): boolean {
    return this.base.first_look ?? false;
  }

  /** The metric's tracks, one an attempt, up to the newest event. */
  tracks(line: LineKey): Track[] {
    const name = `${line.table}/${line.key}/${line.transform ?? ""}`;
    let entry = this.entries.get(name);
    if (!entry) {
      entry = { tracks: this.fromBase(line), lastSeq: this.base.to_seq };
      this.entries.set(name, entry);
    }
    this.catchUp(entry, line);
    return entry.tracks;
  }

  /** The first and the last x of the whole run. */
  range(): [number, number] | null {
    const { metrics } = this.store;
    let [low, high] = this.base.x === this.x ? (this.base.range ?? NO_RANGE) : this.baseRange();
    const first = metrics.rowAfter(this.base.to_seq);
    for (const row of first < metrics.rows ? [first, metrics.rows - 1] : []) {
      const x = this.liveX(metrics, row);
      if (x === undefined) continue;
      low = Math.min(low, x);
      high = Math.max(high, x);
    }
    return low <= high ? [low, high] : null;
  }

  /** The base comes with all axes; its range only for the one that was asked for. */
  private baseRange(): [number, number] {
    let [low, high] = NO_RANGE;
    for (const { axes, end } of this.base.tables.metrics?.segments ?? []) {
      low = Math.min(low, axes[this.x]?.[0] ?? low);
      high = Math.max(high, end[this.x] ?? high);
    }
    return [low, high];
  }

  /** The optimizer step at an x. */
  stepAt(x: number): number {
    if (this.x === "step") return Math.round(x);
    return Math.round(between(this.stepTable(), x));
  }

  /** The x at which the run stood at a step (of its latest attempt there). */
  xAt(step: number): number {
    if (this.x === "step") return step;
    const [xs, steps] = this.stepTable();
    return between([steps, xs], step);
  }

  private fromBase(line: LineKey): Track[] {
    const { table, key, transform } = line;
    const name = nameOf(line);
    const smoothing = table === "validation" ? 0 : this.smoothing;
    const segments = this.base.tables[table]?.segments ?? [];
    return segments
      .map((segment) => {
        const column = segment.series[name] ? name : key;
        return Track.fromSegment(
          this.placed(segment),
          column,
          this.x,
          smoothing,
          transform ? (TRANSFORMS[transform] ?? null) : null,
        );
      })
      .filter((track) => track.rows > 0);
  }

  /** Validation points know their step and time; on other axes they stand where training stood at that step. */
  private placed(segment: Segment): Segment {
    if (segment.axes[this.x] || !segment.axes.step) return segment;
    const at = (step: number): number => this.xAt(step);
    return {
      ...segment,
      axes: { ...segment.axes, [this.x]: segment.axes.step.map(at) },
      end: { ...segment.end, [this.x]: at(segment.end.step ?? 0) },
    };
  }

  private catchUp(entry: Entry, { table, key, transform }: LineKey): void {
    const live = this.store[table];
    const column = live.columns.get(key);
    for (let row = live.rowAfter(entry.lastSeq); row < live.rows; row++) {
      entry.lastSeq = live.seq[row] as number;
      const value = column?.[row];
      const x = this.liveX(live, row);
      if (value === undefined || x === undefined) continue;
      const attempt = live.attempt[row] as number;
      let track = entry.tracks.at(-1);
      if (!track || track.attempt !== attempt) {
        const smoothing = table === "validation" ? 0 : this.smoothing;
        track = new Track(attempt, smoothing, transform ? (TRANSFORMS[transform] ?? null) : null);
        entry.tracks.push(track);
      }
      track.push(x, value);
    }
  }

  private liveX(live: LiveTable, row: number): number | undefined {
    if (this.x === "step") return live.step[row];
    if (this.x === "time") return live.time[row];
    const own = live.columns.get(this.x)?.[row];
    if (own !== undefined) return own;
    const { metrics } = this.store; // a validation stands where the last training step before it stood
    const before = metrics.rowAfter(live.seq[row] as number) - 1;
    return before >= 0 ? metrics.columns.get(this.x)?.[before] : this.base.range?.[1];
  }

  /** Growing x and the step at each, from the base's axes and the live rows. */
  private stepTable(): [number[], number[]] {
    const xs: number[] = [];
    const steps: number[] = [];
    for (const { axes, end } of this.base.tables.metrics?.segments ?? []) {
      const own = axes[this.x];
      if (!own || !axes.step) continue;
      for (let i = 0; i < own.length; i++) {
        xs.push(own[i] as number);
        steps.push(axes.step[i] as number);
      }
      if (end[this.x] !== undefined && end.step !== undefined) {
        xs.push(end[this.x] as number);
        steps.push(end.step);
      }
    }
    const { metrics } = this.store;
    for (let row = metrics.rowAfter(this.base.to_seq); row < metrics.rows; row++) {
      const x = this.liveX(metrics, row);
      if (x === undefined) continue;
      xs.push(x);
      steps.push(metrics.step[row] as number);
    }
    return [xs, steps];
  }
}

function between([from, to]: [number[], number[]], value: number): number {
  if (!from.length) return 0;
  const at = bisect(from, value);
  if (at < 0) return to[0] as number;
  if (at + 1 >= from.length) return to.at(-1) as number;
  const [x0, x1, y0, y1] = [from[at], from[at + 1], to[at], to[at + 1]] as [number, number, number, number];
  return x1 === x0 ? y1 : y0 + ((value - x0) / (x1 - x0)) * (y1 - y0);
}
