// Where an axis has its ticks, and what stands beside them.
import type uPlot from "uplot";
import { formatDuration } from "../format";

/** Tick labels: short, and exact enough to tell neighbours apart. */
function shortNumber(value: number): string {
  const size = Math.abs(value);
  if (size >= 1e9) return Number(value.toPrecision(4)).toExponential().replace("e+", "e");
  if (size >= 1e6) return `${Number((value / 1e6).toPrecision(4))}M`;
  if (size >= 1e4) return `${Number((value / 1e3).toPrecision(4))}k`;
  if (size !== 0 && size < 1e-3) return Number(value.toPrecision(4)).toExponential().replace("e-", "e−");
  return String(Number(value.toPrecision(6)));
}

const WHOLE_STEPS = Array.from({ length: 16 }, (_, power) => [1, 2, 5].map((n) => n * 10 ** power)).flat();

/** Ticks and their labels: of values, of whole numbers, or of powers of ten. */
export function numberAxis(scale: "x" | "y", logarithmic: boolean, whole = false): Partial<uPlot.Axis> {
  if (!logarithmic)
    return {
      values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : shortNumber(tick))),
      ...(whole ? { incrs: WHOLE_STEPS } : {}),
    };
  return {
    splits: (u) => logTicks(u.scales[scale]?.min ?? 0, u.scales[scale]?.max ?? 1),
    values: (_, ticks) => ticks.map((tick) => shortNumber(10 ** tick)),
  };
}

/**
 * Whole powers of ten between two powers, with twos and fives between them where there is room. A part of one decade
 * that holds fewer than three of them is divided evenly, as a linear axis is.
 */
export function logTicks(min: number, max: number): number[] {
  const steps = max - min <= 2 ? [0, Math.log10(2), Math.log10(5)] : [0];
  const every = Math.max(1, Math.ceil((max - min) / 8));
  const ticks: number[] = [];
  for (let power = Math.floor(min); power <= max; power += every)
    for (const step of steps) if (power + step >= min && power + step <= max) ticks.push(power + step);
  return ticks.length > 2 ? ticks : roundValues(10 ** min, 10 ** max).map(Math.log10);
}

/** At least three multiples of one, two or five times a power of ten: as few as there are. */
function roundValues(from: number, to: number): number[] {
  const largest = Math.floor(Math.log10(to - from));
  for (let power = largest; ; power--)
    for (const digit of [5, 2, 1]) {
      const step = digit * 10 ** power;
      const first = Math.ceil(from / step - 1e-9); // an end that is round itself counts
      const count = Math.floor(to / step + 1e-9) - first + 1;
      if (count < 3) continue;
      // Multiplied as whole numbers where the power is negative: 3 * 0.1 is not 0.3.
      return Array.from({ length: count }, (_, index) => {
        const multiple = (first + index) * digit;
        return power < 0 ? multiple / 10 ** -power : multiple * 10 ** power;
      });
    }
}

const TIME_STEPS = [
  1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400, 172800, 604800,
];

/** Ticks of Unix seconds, told as the time since `origin`. */
export function timeAxis(origin: number): Partial<uPlot.Axis> {
  return {
    splits: (u) => timeSplits(u, origin),
    values: (_, ticks) => ticks.map((tick) => formatDuration(tick - origin)),
  };
}

function timeSplits(u: uPlot, origin: number): number[] {
  const { min = origin, max = origin + 1 } = u.scales.x ?? {};
  const from = (min ?? origin) - origin;
  const to = (max ?? origin + 1) - origin;
  const wanted = (to - from) / Math.max(2, u.width / 110);
  const step = TIME_STEPS.find((candidate) => candidate >= wanted) ?? 604800;
  const splits: number[] = [];
  for (let t = Math.ceil(from / step) * step; t <= to; t += step) splits.push(t + origin);
  return splits;
}
