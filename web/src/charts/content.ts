// What a chart shows, how, and what it tells when a person acts on it.
import type { Mark, Polyline } from "./track";

/** A range of x that is shown; null: all of it. */
export type Window = [number, number] | null;

export interface LinePart {
  raw: Polyline;
  smooth: Polyline | null;
  marks: Mark[];
  /** The x of points that were measured near there, not there. */
  placed?: ReadonlySet<number>;
}

export interface PlotLine {
  id: string;
  label: string;
  /** Name of a CSS variable. */
  color: string;
  parts: LinePart[];
  /** Sparse lines show their points. */
  dots: boolean;
  dash?: number[];
}

export interface Reference {
  label: string;
  value: number;
}

export interface PlotContent {
  lines: PlotLine[];
  references: Reference[];
  /** x at which attempts after the first began. */
  starts: { x: number; label: string }[];
  /** Where the run stood still; `to` equals `from` on axes that do not count time. */
  pauses: { from: number; to: number }[];
  range: [number, number] | null;
  stacked: boolean;
  /** The y axis begins at zero. */
  zero: boolean;
}

export interface PlotSettings {
  logX: boolean;
  logY: boolean;
  /** x counts Unix seconds: axis and cursor speak of the time since this one. */
  timeOrigin: number | null;
  /** x counts things: no ticks between them. */
  whole: boolean;
  unit: string;
}

export interface PlotHandlers {
  hover(x: number | null): void;
  pin(x: number | null): void;
  zoom(range: [number, number] | null): void;
}

export const EMPTY: PlotContent = {
  lines: [],
  references: [],
  starts: [],
  pauses: [],
  range: null,
  stacked: false,
  zero: false,
};
