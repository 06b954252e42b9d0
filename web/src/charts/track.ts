// A metric of one attempt as something to draw: the points with all extremes, a smoothed line, and what was not finite.
import type { BucketColumn, RawColumn, Segment } from "../api/types";
import { toNumber } from "../format";

/** Points in order of x. A NaN in `y` is a gap. */
export interface Polyline {
  x: number[];
  y: number[];
}

export interface Mark {
  x: number;
  value: number;
}

/** Above this many points a track keeps only the extremes of each four neighbours: half as many points. */
const MANY_POINTS = 6_000;

export type Transform = (value: number) => number;

export class Track {
  readonly raw: Polyline = { x: [], y: [] };
  readonly smooth: Polyline = { x: [], y: [] };
  readonly marks: Mark[] = [];
  /** The x of points that are only drawn there: where in its bucket an extreme was measured is not known. */
  readonly placed = new Set<number>();
  /** Rows behind the points. */
  rows = 0;
  /** Whether some rows are drawn only by their bucket's extremes. */
  reduced = false;
  readonly attempt: number;
  private readonly smoothing: number;
  private readonly transform: Transform | null;
  private average = 0;
  private weight = 0;

  /** `smoothing` in [0, 1): the share of the exponential average that one row keeps; 0 follows the means. */
  constructor(attempt: number, smoothing: number, transform: Transform | null = null) {
    this.attempt = attempt;
    this.smoothing = smoothing;
    this.transform = transform;
  }

  static fromSegment(
    segment: Segment,
    key: string,
    axis: string,
    smoothing: number,
    transform: Transform | null = null,
  ): Track {
    const track = new Track(segment.attempt, smoothing, transform);
    const column = segment.series[key];
    const xs = segment.axes[axis];
    if (!column || !xs) return track;
    if ("value" in column) track.takeRows(xs, column);
    else track.takeBuckets(xs, segment.end[axis] ?? (xs.at(-1) as number), segment, column);
    return track;
  }

  /** Adds one measured value. Absent values are simply not added. */
  push(x: number, value: number): void {
    this.take(x, value);
    if (this.raw.x.length > MANY_POINTS) this.halve();
  }

  private take(x: number, value: number): void {
    this.rows += 1;
    this.point(x, this.transform ? this.transform(value) : value);
    if (Number.isFinite(value)) this.follow(x, value, 1);
  }

  /** Points that are drawn of a window of x (null: of all). */
  pointsIn(window: [number, number] | null): number {
    return window ? bisect(this.raw.x, window[1]) - bisect(this.raw.x, window[0]) : this.raw.x.length;
  }

  /** Rows behind them: each point stands for equally many. */
  rowsIn(window: [number, number] | null): number {
    return this.raw.x.length ? (this.rows * this.pointsIn(window)) / this.raw.x.length : 0;
  }

  private takeRows(xs: number[], column: RawColumn): void {
    column.value.forEach((value, row) => {
      const number = toNumber(value);
      if (number !== null) this.take(xs[row] as number, number);
    });
  }

  /** Each bucket becomes its first, lowest, highest and last point: a spike of one step stays as high as it was. */
  private takeBuckets(xs: number[], end: number, { bucket, rows }: Segment, column: BucketColumn): void {
    const convert = (value: unknown): number | null => {
      const number = toNumber(value);
      return number === null || !this.transform ? number : this.transform(number);
    };
    this.reduced = true;
    for (let i = 0; i < xs.length; i++) {
      const from = xs[i] as number;
      const next = xs[i + 1]; // a bucket ends just before the next one begins
      const ends = next === undefined;
      const to = ends ? end : from + (next - from) * 0.75;
      const full = ends ? rows - i * bucket : bucket;
      const count = column.count ? (column.count[i] as number) : full;
      if (!count) continue;
      this.rows += count;
      const first = convert(column.first[i]);
      const last = convert(column.last[i]);
      const low = convert(column.min[i]);
      const high = convert(column.max[i]);
      const rising = (first ?? 0) <= (last ?? 0);
      const inner = rising ? [low, high] : [high, low];
      [first, ...inner, last].forEach((y, place) => {
        if (y === null || (!Number.isFinite(y) && place !== 0 && place !== 3)) return;
        const x = ends && place === 3 ? end : from + ((to - from) * place) / 3;
        if (count < full || !(place === 0 || (ends && place === 3))) this.placed.add(x);
        this.point(x, y);
      });
      // Non-finite values within the bucket that are neither its first nor its last still leave a mark.
      if (column.nonfinite?.[i] && Number.isFinite(first ?? 0) && Number.isFinite(last ?? 0)) {
        const x = (from + to) / 2;
        this.placed.add(x);
        this.marks.push({ x, value: Number.NaN });
      }
      const mean = column.mean[i];
      if (typeof mean === "number") this.follow((from + to) / 2, mean, count);
    }
  }

  private point(x: number, y: number): void {
    if (!Number.isFinite(y)) this.marks.push({ x, value: y });
    this.raw.x.push(x);
    this.raw.y.push(Number.isFinite(y) ? y : Number.NaN);
  }

  /**
   * The exponential average over rows, freed of its start at zero; a bucket counts as its many rows. The average is
   * of what was measured, and then transformed: a perplexity is that of the mean loss.
   */
  private follow(x: number, value: number, rows: number): void {
    const keep = this.smoothing > 0 ? this.smoothing ** rows : 0;
    this.average = keep * this.average + (1 - keep) * value;
    this.weight = keep * this.weight + (1 - keep);
    this.smooth.x.push(x);
    const average = this.average / this.weight;
    this.smooth.y.push(this.transform ? this.transform(average) : average);
  }

  private halve(): void {
    const { x, y } = this.raw;
    let out = 0;
    for (let i = 0; i < x.length; i += 4) {
      const end = Math.min(i + 4, x.length);
      let low = -1;
      let high = -1;
      for (let j = i; j < end; j++) {
        const value = y[j] as number;
        if (Number.isNaN(value)) continue;
        if (low < 0 || value < (y[low] as number)) low = j;
        if (high < 0 || value > (y[high] as number)) high = j;
      }
      for (const j of low < 0 ? [i] : low === high ? [low] : [Math.min(low, high), Math.max(low, high)]) {
        x[out] = x[j] as number;
        y[out] = y[j] as number;
        out += 1;
      }
    }
    x.length = y.length = out;
    thin(this.smooth);
    this.reduced = true;
  }
}

/** How many points of the tracks are drawn within a window of x, and how many rows are behind them; 0 of 0: the same. */
export function pointsOf(tracks: Track[], window: [number, number] | null): { shown: number; total: number } {
  if (!tracks.some((track) => track.reduced)) return { shown: 0, total: 0 };
  const sum = (of: (track: Track) => number): number => tracks.reduce((total, track) => total + of(track), 0);
  return { shown: sum((track) => track.pointsIn(window)), total: Math.round(sum((track) => track.rowsIn(window))) };
}

function thin(line: Polyline): void {
  const half = line.x.length >> 1;
  for (let i = 0; i < half; i++) {
    line.x[i] = line.x[2 * i + 1] as number;
    line.y[i] = line.y[2 * i + 1] as number;
  }
  line.x.length = line.y.length = half;
}

/** The index of the last x that is not above `value`; -1 where there is none. */
export function bisect(xs: number[], value: number): number {
  let low = 0;
  let high = xs.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((xs[middle] as number) > value) high = middle;
    else low = middle + 1;
  }
  return low - 1;
}

/** The index of the x nearest to `value`; -1 for no points. */
export function nearest(xs: number[], value: number): number {
  const at = bisect(xs, value);
  if (at < 0) return xs.length ? 0 : -1;
  if (at + 1 < xs.length && (xs[at + 1] as number) - value < value - (xs[at] as number)) return at + 1;
  return at;
}

/** The value of a line at `x`, straight between its points; null outside of it or in a gap. */
export function interpolate(line: Polyline, x: number): number | null {
  const at = bisect(line.x, x);
  if (at < 0) return null;
  const x0 = line.x[at] as number;
  const y0 = line.y[at] as number;
  if (x0 === x || at + 1 >= line.x.length) return x0 === x && !Number.isNaN(y0) ? y0 : null;
  const share = (x - x0) / ((line.x[at + 1] as number) - x0);
  const y = y0 + share * ((line.y[at + 1] as number) - y0);
  return Number.isNaN(y) ? null : y;
}
