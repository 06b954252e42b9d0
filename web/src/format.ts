// Numbers, times and sizes in words. What is not finite is shown as what it is.
import type { Num } from "./api/types";

const NAMES: Record<string, string> = { NaN: "NaN", Infinity: "∞", "-Infinity": "−∞" };

/** The JavaScript number behind an API number; null stays null. */
export function toNumber(value: unknown): number | null {
  if (typeof value === "number") return value;
  if (value === "NaN") return Number.NaN;
  if (value === "Infinity") return Number.POSITIVE_INFINITY;
  if (value === "-Infinity") return Number.NEGATIVE_INFINITY;
  return null;
}

/** A measured value in about four significant digits. */
export function formatValue(value: Num | number | null | undefined): string {
  if (value === null || value === undefined) return "–";
  const number = toNumber(value) as number;
  if (!Number.isFinite(number)) return NAMES[String(number)] ?? String(number);
  const size = Math.abs(number);
  if (size === 0) return "0";
  if (size >= 1e6) return formatCount(number);
  if (size >= 1000 || Number.isInteger(number)) return Math.round(number).toLocaleString("en").replace("-", "−");
  if (size < 1e-3) return number.toExponential(2).replace("e-", "e−").replace(/^-/, "−");
  return number
    .toPrecision(4)
    .replace(/(\.\d*?)0{2,}$/, "$1")
    .replace(/\.$/, "")
    .replace(/^-/, "−");
}

/** 30,512,128 -> "30.5 M". */
export function formatCount(value: number): string {
  if (!Number.isFinite(value)) return formatValue(value);
  if (Math.abs(value) >= 1e15) return value.toExponential(2).replace("e+", "e").replace(/^-/, "−");
  for (const [unit, size] of [
    ["T", 1e12],
    ["G", 1e9],
    ["M", 1e6],
    ["k", 1e3],
  ] as const)
    if (Math.abs(value) >= size * (unit === "k" ? 10 : 1)) {
      const scaled = value / size;
      return `${scaled >= 100 ? Math.round(scaled) : Number(scaled.toPrecision(3))} ${unit}`;
    }
  return Number.isInteger(value) ? value.toLocaleString("en") : formatValue(value);
}

export function formatInteger(value: number): string {
  return Math.round(value).toLocaleString("en");
}

export function formatBytes(bytes: number | null | undefined): string {
  if (bytes === null || bytes === undefined) return "–";
  if (bytes < 1000) return `${bytes} B`;
  const units = ["kB", "MB", "GB", "TB"];
  let size = bytes / 1000;
  let unit = 0;
  while (size >= 999.5 && unit < units.length - 1) {
    size /= 1000;
    unit += 1;
  }
  return `${size >= 99.5 ? Math.round(size) : size.toPrecision(2)} ${units[unit]}`;
}

/** Seconds as "42 s", "3 min 20 s", "2 h 5 min", "3 d 4 h". */
export function formatDuration(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  const whole = Math.max(0, Math.round(seconds));
  if (seconds < 10) return `${Math.max(0, seconds).toFixed(1).replace(/\.0$/, "")} s`;
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min${whole % 60 ? ` ${whole % 60} s` : ""}`;
  if (whole < 86400) {
    const minutes = Math.floor((whole % 3600) / 60);
    return `${Math.floor(whole / 3600)} h${minutes ? ` ${minutes} min` : ""}`;
  }
  const hours = Math.floor((whole % 86400) / 3600);
  return `${Math.floor(whole / 86400)} d${hours ? ` ${hours} h` : ""}`;
}

/** A time to go: a range where low and high read differently. */
export function formatRange(range: [number, number] | null): string {
  if (!range) return "–";
  const [low, high] = range.map((seconds) => formatDuration(round(seconds))) as [string, string];
  return low === high ? low : `${low} – ${high}`;
}

/** An estimate deserves two digits, not six. */
function round(seconds: number): number {
  if (seconds < 60) return Math.round(seconds);
  if (seconds < 600) return Math.round(seconds / 10) * 10;
  return Math.round(seconds / 60) * 60;
}

export function formatAgo(time: number | null | undefined, now = Date.now() / 1000): string {
  if (!time) return "–";
  const seconds = now - time;
  if (seconds < 5) return "now";
  if (seconds < 60) return `${Math.floor(seconds)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} d ago`;
}

export function formatTime(time: number | null | undefined): string {
  if (!time) return "–";
  return new Date(time * 1000).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" });
}

export function formatPercent(share: number, digits = 0): string {
  return `${(share * 100).toFixed(digits)} %`;
}

/** "validation/eval_loss" -> "eval loss"; "time.forward" -> "forward". */
export function metricName(key: string): string {
  return (key.split("/").pop() ?? key)
    .replace(/^time\./, "")
    .replaceAll("_", " ")
    .replaceAll(".", " · ");
}
