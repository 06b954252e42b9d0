// Strokes on a chart's canvas, in canvas pixels.
import { formatValue } from "../format";
import type { PlotContent, PlotLine } from "./content";
import { bisect, type Polyline } from "./track";

export interface Canvas {
  ctx: CanvasRenderingContext2D;
  ratio: number;
  left: number;
  top: number;
  width: number;
  height: number;
  x(value: number): number;
  y(value: number): number;
  from: number;
  to: number;
  color(name: string): string;
  font: string;
  logY: boolean;
}

const FEW_POINTS = 80;

export function drawLine(canvas: Canvas, line: PlotLine): void {
  const color = canvas.color(line.color);
  for (const { raw, smooth } of line.parts) {
    if (smooth) {
      stroke(canvas, raw, color, 1, 0.28);
      stroke(canvas, smooth, color, 1.75, 1, line.dash);
    } else stroke(canvas, raw, color, 1.5, 1, line.dash);
    if (line.dots || raw.x.length === 1) drawDots(canvas, raw, color);
  }
}

function visible(canvas: Canvas, line: Polyline): [number, number] {
  return [Math.max(0, bisect(line.x, canvas.from)), Math.min(bisect(line.x, canvas.to) + 2, line.x.length)];
}

function stroke(
  canvas: Canvas,
  line: Polyline,
  color: string,
  width: number,
  alpha: number,
  dash: number[] = [],
): void {
  const { ctx, ratio, logY } = canvas;
  const [start, end] = visible(canvas, line);
  const path = new Path2D();
  // What falls into one column of pixels is drawn as its first, lowest, highest and last point: no extreme is lost.
  let [down, column, left, first, low, high, last] = [false, 0, 0, 0, 0, 0, 0];
  const finish = (): void => {
    if (low === high) return;
    if (low !== first) path.lineTo(left, low);
    path.lineTo(left, high);
    if (last !== high) path.lineTo(left, last);
  };
  for (let i = start; i < end; i++) {
    const value = line.y[i] as number;
    if (Number.isNaN(value) || (logY && value <= 0)) {
      if (down) finish();
      down = false;
      continue;
    }
    const [x, y] = [canvas.x(line.x[i] as number), canvas.y(value)];
    if (down && Math.round(x) === column) {
      low = Math.min(low, y);
      high = Math.max(high, y);
      last = y;
      continue;
    }
    if (down) {
      finish();
      path.lineTo(x, y);
    } else path.moveTo(x, y);
    [down, column, left] = [true, Math.round(x), x];
    first = low = high = last = y;
  }
  if (down) finish();
  ctx.globalAlpha = alpha;
  ctx.strokeStyle = color;
  ctx.setLineDash(dash.map((length) => length * ratio));
  if (end - start < canvas.width / 4 || dash.length) {
    ctx.lineWidth = width * ratio;
    ctx.lineJoin = "round";
    ctx.stroke(path);
  } else {
    // Drawn by software, a line of many corners costs 30 times more when it is wider than a pixel: several thin ones.
    ctx.lineWidth = 1;
    ctx.lineJoin = "bevel";
    const strokes = Math.ceil(width * ratio);
    for (let k = 0; k < strokes; k++) {
      const by = strokes === 1 ? 0 : (width * ratio - 1) * (k / (strokes - 1) - 0.5);
      ctx.translate(0, by);
      ctx.stroke(path);
      ctx.translate(0, -by);
    }
  }
  ctx.setLineDash([]);
  ctx.globalAlpha = 1;
}

function drawDots(canvas: Canvas, line: Polyline, color: string): void {
  const { ctx, ratio } = canvas;
  const [start, end] = visible(canvas, line);
  if (end - start > FEW_POINTS) return;
  ctx.fillStyle = color;
  for (let i = start; i < end; i++) {
    const y = line.y[i] as number;
    if (Number.isNaN(y) || (canvas.logY && y <= 0)) continue;
    ctx.beginPath();
    ctx.arc(canvas.x(line.x[i] as number), canvas.y(y), 2.5 * ratio, 0, 2 * Math.PI);
    ctx.fill();
  }
}

/** What was not finite stands at the chart's edge, by its name: NaN and +∞ above, −∞ below. */
export function drawMarks(canvas: Canvas, lines: PlotLine[]): void {
  const { ctx, ratio } = canvas;
  ctx.fillStyle = canvas.color("--bad");
  ctx.font = `600 ${10 * ratio}px ${canvas.font}`;
  ctx.textAlign = "center";
  const marks = lines
    .flatMap(({ parts }) => parts.flatMap((part) => part.marks))
    .filter(({ x }) => x >= canvas.from && x <= canvas.to)
    .sort((a, b) => a.x - b.x);
  const free = { above: canvas.left, below: canvas.left }; // from where on a name covers none before it, of any line
  for (const { x, value } of marks) {
    const px = canvas.x(x);
    const side = value === Number.NEGATIVE_INFINITY ? "below" : "above";
    const edge = side === "below" ? canvas.top + canvas.height : canvas.top;
    const size = (side === "below" ? -5 : 5) * ratio;
    ctx.beginPath();
    ctx.moveTo(px - 4 * ratio, edge);
    ctx.lineTo(px + 4 * ratio, edge);
    ctx.lineTo(px, edge + size * 1.4);
    ctx.fill();
    const name = formatValue(value);
    const half = ctx.measureText(name).width / 2;
    const middle = Math.min(Math.max(px, canvas.left + half), canvas.left + canvas.width - half);
    if (middle - half < free[side]) continue;
    free[side] = middle + half + 8 * ratio;
    ctx.fillText(name, middle, side === "below" ? edge - 10 * ratio : edge + 18 * ratio);
  }
}

interface Box {
  left: number;
  right: number;
  top: number;
  bottom: number;
}

/** Drawn before the lines: a name that finds no free place along its line lies under the curves, not over them. */
export function drawReferences(canvas: Canvas, references: PlotContent["references"], lines: PlotLine[]): void {
  const { ctx, ratio } = canvas;
  ctx.font = `${10.5 * ratio}px ${canvas.font}`;
  ctx.textAlign = "left";
  const named: Box[] = [];
  for (const { label, value } of references.toSorted((a, b) => a.value - b.value)) {
    const y = Math.round(canvas.y(value)) + 0.5;
    if (!(y > canvas.top && y < canvas.top + canvas.height)) continue;
    ctx.strokeStyle = canvas.color("--ink-3");
    ctx.globalAlpha = 0.7;
    ctx.lineWidth = ratio;
    ctx.setLineDash([2 * ratio, 3 * ratio]);
    ctx.beginPath();
    ctx.moveTo(canvas.left, y);
    ctx.lineTo(canvas.left + canvas.width, y);
    ctx.stroke();
    ctx.setLineDash([]);
    ctx.globalAlpha = 1;
    ctx.fillStyle = canvas.color("--ink-2");
    const text = `${label} ${formatValue(value)}`;
    const width = ctx.measureText(text).width;
    const room = canvas.width - width - 8 * ratio;
    const places = [1, 0, 0.5, 0.75, 0.25].map((share): Box => {
      const left = canvas.left + 4 * ratio + share * room;
      return { left, right: left + width, top: y - 14 * ratio, bottom: y };
    });
    const unnamed = places.filter((place) => !named.some((other) => overlap(place, other)));
    const place = unnamed.find((candidate) => !lines.some((line) => crosses(canvas, line, candidate))) ?? unnamed[0];
    if (!place) continue;
    ctx.fillText(text, place.left, y - 4 * ratio);
    named.push(place);
  }
}

function overlap(a: Box, b: Box): boolean {
  return a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
}

/** Whether a line runs through a box; only roughly where it is steep, as a segment counts with all that it spans. */
function crosses(canvas: Canvas, { parts }: PlotLine, box: Box): boolean {
  return parts.some(({ raw, smooth }) => runsThrough(canvas, raw, box) || (smooth && runsThrough(canvas, smooth, box)));
}

function runsThrough(canvas: Canvas, line: Polyline, box: Box): boolean {
  const [start, end] = visible(canvas, line);
  for (let i = start; i < end; i++) {
    const next = Math.min(i + 1, end - 1);
    if (canvas.x(line.x[i] as number) > box.right) break;
    if (canvas.x(line.x[next] as number) < box.left) continue;
    const [from, to] = [canvas.y(line.y[i] as number), canvas.y(line.y[next] as number)];
    if (Math.min(from, to) <= box.bottom && Math.max(from, to) >= box.top) return true;
  }
  return false;
}

export function drawStarts(canvas: Canvas, starts: PlotContent["starts"]): void {
  const { ctx, ratio } = canvas;
  ctx.font = `${10 * ratio}px ${canvas.font}`;
  ctx.textAlign = "left";
  const [right, gap] = [canvas.left + canvas.width, 4 * ratio];
  let free = right;
  for (const { x, label } of starts.toSorted((a, b) => b.x - a.x)) {
    const px = Math.round(canvas.x(x)) + 0.5;
    if (px < canvas.left || px > right) continue;
    ctx.strokeStyle = canvas.color("--accent");
    ctx.lineWidth = ratio;
    ctx.setLineDash([5 * ratio, 3 * ratio]);
    ctx.beginPath();
    ctx.moveTo(px, canvas.top);
    ctx.lineTo(px, canvas.top + canvas.height);
    ctx.stroke();
    ctx.setLineDash([]);
    ctx.fillStyle = canvas.color("--accent-ink");
    const width = ctx.measureText(label).width;
    const left = px + gap + width > right ? px - gap - width : px + gap;
    if (left + width > free) continue; // the name of a later attempt stands there
    ctx.fillText(label, left, canvas.top + canvas.height - 5 * ratio);
    free = left - gap;
  }
}

export function drawPauses(canvas: Canvas, pauses: PlotContent["pauses"]): void {
  const { ctx, ratio } = canvas;
  for (const { from, to } of pauses) {
    const left = canvas.x(from);
    const width = Math.max(canvas.x(to) - left, 0);
    ctx.fillStyle = canvas.color("--pause");
    if (width > 2 * ratio) ctx.fillRect(left, canvas.top, width, canvas.height);
    else {
      // An axis that does not count time has no width for a pause: two short bars, as on a player's button.
      ctx.fillStyle = canvas.color("--c4");
      for (const side of [-3, 1])
        ctx.fillRect(left + side * ratio, canvas.top + canvas.height - 9 * ratio, 2 * ratio, 9 * ratio);
    }
  }
}

/** Lines on top of each other, filled: shares of a whole. All parts of one index have the same xs. */
export function drawStack(canvas: Canvas, lines: PlotLine[]): void {
  const { ctx } = canvas;
  const parts = lines[0]?.parts.length ?? 0;
  for (let part = 0; part < parts; part++) {
    const xs = lines[0]?.parts[part]?.smooth?.x ?? [];
    const start = Math.max(0, bisect(xs, canvas.from));
    const end = Math.min(bisect(xs, canvas.to) + 2, xs.length);
    const floor = new Float64Array(Math.max(0, end - start));
    for (const line of lines) {
      const ys = line.parts[part]?.smooth?.y ?? [];
      ctx.beginPath();
      for (let i = start; i < end; i++) {
        const top = (floor[i - start] as number) + (ys[i] ?? 0);
        const px = canvas.x(xs[i] as number);
        if (i === start) ctx.moveTo(px, canvas.y(top));
        else ctx.lineTo(px, canvas.y(top));
      }
      for (let i = end - 1; i >= start; i--)
        ctx.lineTo(canvas.x(xs[i] as number), canvas.y(floor[i - start] as number));
      ctx.closePath();
      ctx.fillStyle = canvas.color(line.color);
      ctx.globalAlpha = 0.75;
      ctx.fill();
      ctx.globalAlpha = 1;
      for (let i = start; i < end; i++) floor[i - start] = (floor[i - start] as number) + (ys[i] ?? 0);
    }
  }
}
