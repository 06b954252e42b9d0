// One chart on a canvas. uPlot gives scales, axes and drag selection; the lines are drawn here, straight from tracks.
import uPlot from "uplot";
import { formatDuration, formatValue } from "../format";
import { numberAxis, timeAxis } from "./axes";
import { EMPTY, type PlotContent, type PlotHandlers, type PlotLine, type PlotSettings } from "./content";
import { drawLine, drawMarks, drawPauses, drawReferences, drawStack, drawStarts, type Canvas } from "./draw";
import { bisect, interpolate, nearest } from "./track";

export class PlotView {
  content: PlotContent = EMPTY;
  readonly u: uPlot;
  private window: [number, number] | null = null;
  private readonly settings: PlotSettings;
  private readonly handlers: PlotHandlers;
  private readonly line: HTMLDivElement;
  private readonly dots: HTMLDivElement[] = [];
  private pan: { x: number; from: number; to: number } | null = null;
  private cursorX: number | null = null;

  constructor(host: HTMLElement, settings: PlotSettings, handlers: PlotHandlers) {
    this.settings = settings;
    this.handlers = handlers;
    this.u = new uPlot(this.options(host), [[0, 1]], host);
    this.line = document.createElement("div");
    this.line.className = "plot-cursor";
    this.u.over.append(this.line);
    this.listen();
  }

  destroy(): void {
    this.u.destroy();
  }

  resize(width: number, height: number): void {
    if (width > 0 && (width !== this.u.width || height !== this.u.height)) this.u.setSize({ width, height });
  }

  /** Shows new content, within `window` (null: all of it). */
  show(content: PlotContent, window: [number, number] | null): void {
    this.content = content;
    this.window = window;
    this.rescale();
  }

  /** The xs that the arrow keys walk over. */
  stops(): number[] {
    const [from, to] = this.xRange();
    const part = this.content.lines[0]?.parts.at(-1);
    const xs = (this.content.stacked ? part?.smooth?.x : part?.raw.x) ?? [];
    return xs.slice(bisect(xs, from - 1e-9) + 1, bisect(xs, to) + 1);
  }

  /** The value of a line at x: what the legend and a screen reader say. */
  valueAt(line: PlotLine, x: number): { shown: number | null; raw: number | null } {
    for (const part of line.parts.toReversed()) {
      const { raw, smooth } = part;
      const mark = part.marks.find((candidate) => candidate.x === x);
      if (mark) return { shown: mark.value, raw: mark.value };
      const first = raw.x[0];
      const last = raw.x.at(-1);
      if (first === undefined || last === undefined || x < first || x > last) continue;
      if (line.dots || !smooth) {
        const y = raw.y[nearest(raw.x, x)] ?? null;
        return { shown: y, raw: y };
      }
      return { shown: interpolate(smooth, x), raw: raw.y[nearest(raw.x, x)] ?? null };
    }
    return { shown: null, raw: null };
  }

  setCursor(x: number | null): void {
    this.cursorX = x;
    const [from, to] = this.xRange();
    const visible = x !== null && x >= from && x <= to;
    const left = visible ? this.u.valToPos(this.unit(x, "x"), "x") : 0;
    this.line.style.display = visible ? "block" : "none";
    this.content.lines.forEach((line, index) => {
      const dot = this.dot(index);
      const y = visible && !this.content.stacked ? this.valueAt(line, x).shown : null;
      const top = y === null || !Number.isFinite(y) ? Number.NaN : this.u.valToPos(this.unit(y, "y"), "y");
      const inside = top >= 0 && top <= this.u.over.clientHeight;
      dot.style.display = visible && inside ? "block" : "none";
      if (!visible || !inside) return;
      dot.style.transform = `translate(${left}px, ${top}px)`;
      dot.style.background = `var(${line.color})`;
    });
    for (const dot of this.dots.slice(this.content.lines.length)) dot.style.display = "none";
    if (visible) this.line.style.transform = `translateX(${Math.round(left)}px)`;
  }

  formatX(x: number): string {
    const { timeOrigin } = this.settings;
    if (timeOrigin !== null) return formatDuration(x - timeOrigin);
    return Number.isInteger(x) ? x.toLocaleString("en") : formatValue(x);
  }

  private rescale(): void {
    const [min, max] = this.xRange();
    this.u.batch(() => {
      this.u.setScale("x", { min: this.unit(min, "x"), max: this.unit(max, "x") });
      const [low, high] = this.yRange(min, max);
      this.u.setScale("y", { min: this.unit(low, "y"), max: this.unit(high, "y") });
    });
    this.setCursor(this.cursorX);
  }

  private logarithmic(axis: "x" | "y"): boolean {
    return axis === "y" ? this.settings.logY : this.settings.logX && this.settings.timeOrigin === null;
  }

  /** A value in the units of its scale: a logarithmic axis is a linear scale of powers of ten. */
  private unit(value: number, axis: "x" | "y"): number {
    return this.logarithmic(axis) ? Math.log10(value) : value;
  }

  /** The x at a place of the plotting area. */
  private xAt(left: number): number {
    const unit = this.u.posToVal(left, "x");
    return this.logarithmic("x") ? 10 ** unit : unit;
  }

  private xRange(): [number, number] {
    let [from, to] = this.window ?? this.content.range ?? [0, 1];
    if (this.logarithmic("x") && from <= 0) from = Math.min(1, to / 1000);
    if (to <= from) to = from + (this.settings.timeOrigin === null ? 1 : 10);
    return [from, to];
  }

  private yRange(from: number, to: number): [number, number] {
    const { logY } = this.settings;
    let low = Number.POSITIVE_INFINITY;
    let high = Number.NEGATIVE_INFINITY;
    const see = (y: number): void => {
      if (Number.isNaN(y) || (logY && y <= 0)) return;
      if (y < low) low = y;
      if (y > high) high = y;
    };
    if (this.content.stacked) {
      this.eachStack(from, to, (_, top) => see(top));
      return [0, high > 0 ? high * 1.05 : 1];
    }
    for (const { parts } of this.content.lines)
      for (const { raw } of parts) {
        const end = Math.min(bisect(raw.x, to) + 2, raw.x.length);
        for (let i = Math.max(0, bisect(raw.x, from)); i < end; i++) see(raw.y[i] as number);
      }
    if (low > high) return logY ? [0.1, 1] : [0, 1];
    if (logY) return low === high ? [low / 2, high * 2] : [low / 1.1, high * 1.1];
    if (low === high) return low === 0 ? [0, 1] : [low - Math.abs(low) / 10, high + Math.abs(high) / 10];
    if (this.content.zero && low >= 0) return [0, high * 1.08];
    const margin = (high - low) * 0.06;
    return [low >= 0 && low < margin * 3 ? Math.max(0, low - margin) : low - margin, high + margin];
  }

  private eachStack(from: number, to: number, see: (x: number, top: number) => void): void {
    const first = this.content.lines[0];
    first?.parts.forEach((part, index) => {
      const xs = part.smooth?.x ?? [];
      for (let i = Math.max(0, bisect(xs, from)); i < xs.length && (xs[i] as number) <= to; i++) {
        let top = 0;
        for (const line of this.content.lines) top += line.parts[index]?.smooth?.y[i] ?? 0;
        see(xs[i] as number, top);
      }
    });
  }

  private options(host: HTMLElement): uPlot.Options {
    const { logX, logY, timeOrigin } = this.settings;
    const css = getComputedStyle(host);
    const ink = (name: string) => () => css.getPropertyValue(name);
    const axis = {
      stroke: ink("--ink-3"),
      grid: { stroke: ink("--line-1"), width: 1 },
      ticks: { stroke: ink("--line-1"), width: 1, size: 4 },
      font: `11px ${css.fontFamily}`,
    };
    return {
      width: Math.max(host.clientWidth, 100),
      height: Math.max(host.clientHeight, 100),
      padding: [8, 18, 0, 0],
      legend: { show: false },
      cursor: {
        show: true,
        x: false,
        y: false,
        points: { show: false },
        drag: { x: true, y: false, setScale: false, dist: 6 },
        bind: { dblclick: () => null },
      },
      scales: {
        x: { time: false, auto: false },
        y: { auto: false },
      },
      series: [{}],
      axes: [
        {
          ...axis,
          size: 26,
          gap: 3,
          ...(timeOrigin === null ? numberAxis("x", logX, this.settings.whole) : timeAxis(timeOrigin)),
        },
        { ...axis, size: 52, gap: 4, ...numberAxis("y", logY) },
      ],
      hooks: {
        draw: [(u) => this.draw(u, css)],
        setSelect: [(u) => this.selected(u)],
      },
    };
  }

  private draw(u: uPlot, css: CSSStyleDeclaration): void {
    const { ctx, bbox } = u;
    const canvas: Canvas = {
      ctx,
      ratio: uPlot.pxRatio,
      left: bbox.left,
      top: bbox.top,
      width: bbox.width,
      height: bbox.height,
      x: this.placer("x"),
      y: this.placer("y"),
      from: this.xRange()[0],
      to: this.xRange()[1],
      color: (name) => css.getPropertyValue(name).trim(),
      font: css.fontFamily,
      logY: this.settings.logY,
    };
    const { content } = this;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    drawPauses(canvas, content.pauses);
    drawStarts(canvas, content.starts);
    drawReferences(canvas, content.references, content.lines);
    if (content.stacked) drawStack(canvas, content.lines);
    else for (const line of content.lines) drawLine(canvas, line);
    drawMarks(canvas, content.lines);
    ctx.restore();
  }

  /** What `u.valToPos` says, for many values: both axes are linear in their units. */
  private placer(axis: "x" | "y"): (value: number) => number {
    const { min = 0, max = 1 } = this.u.scales[axis] as { min?: number; max?: number };
    const start = this.u.valToPos(min, axis, true);
    const slope = (this.u.valToPos(max, axis, true) - start) / (max - min);
    if (this.logarithmic(axis)) return (value) => start + (Math.log10(value) - min) * slope;
    return (value) => start + (value - min) * slope;
  }

  private dot(index: number): HTMLDivElement {
    let dot = this.dots[index];
    if (!dot) {
      dot = document.createElement("div");
      dot.className = "plot-dot";
      this.u.over.append(dot);
      this.dots[index] = dot;
    }
    return dot;
  }

  private selected(u: uPlot): void {
    const { left, width } = u.select;
    if (width < 4) return;
    const range: [number, number] = [this.xAt(left), this.xAt(left + width)];
    u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    this.handlers.zoom(range);
  }

  private listen(): void {
    const { over } = this.u;
    let down: { x: number; y: number } | null = null;
    const place = (event: MouseEvent): number => event.clientX - over.getBoundingClientRect().left;
    over.addEventListener("pointermove", (event) => {
      if (this.pan) return this.panTo(event.clientX);
      this.handlers.hover(this.snap(this.xAt(place(event))));
    });
    over.addEventListener("pointerleave", () => this.handlers.hover(null));
    over.addEventListener(
      "mousedown",
      (event) => {
        down = { x: event.clientX, y: event.clientY };
        if (!event.shiftKey && event.button !== 1) return;
        event.stopImmediatePropagation(); // shift or the middle button moves the window; uPlot must not select
        event.preventDefault();
        const [from, to] = this.xRange();
        this.pan = { x: event.clientX, from: this.unit(from, "x"), to: this.unit(to, "x") };
        addEventListener("mouseup", () => (this.pan = null), { once: true });
      },
      { capture: true },
    );
    over.addEventListener("click", (event) => {
      const still = down && Math.abs(event.clientX - down.x) < 4 && Math.abs(event.clientY - down.y) < 4;
      if (still && !event.shiftKey && event.detail === 1) this.handlers.pin(this.snap(this.xAt(place(event))));
    });
    over.addEventListener("dblclick", () => this.handlers.zoom(null));
    over.addEventListener(
      "wheel",
      (event) => {
        if (!event.ctrlKey && !event.metaKey && Math.abs(event.deltaX) <= Math.abs(event.deltaY)) return;
        event.preventDefault();
        if (event.ctrlKey || event.metaKey) this.zoomBy(event.deltaY > 0 ? 1.25 : 0.8, this.xAt(event.offsetX));
        else this.panBy(event.deltaX / over.clientWidth);
      },
      { passive: false },
    );
  }

  /** Scales the window about `centre` (its middle where none is given). */
  zoomBy(factor: number, centre?: number): void {
    this.moveWindow((from, to) => {
      const middle = centre === undefined ? (from + to) / 2 : this.unit(centre, "x");
      return [middle - (middle - from) * factor, middle + (to - middle) * factor];
    });
  }

  /** Moves the window by a share of its width. */
  panBy(share: number): void {
    this.moveWindow((from, to) => [from + (to - from) * share, to + (to - from) * share]);
  }

  private panTo(clientX: number): void {
    if (!this.pan) return;
    const { x, from, to } = this.pan;
    const by = ((x - clientX) / this.u.over.clientWidth) * (to - from);
    this.moveWindow(() => [from + by, to + by]);
  }

  /** Asks for another window, which `change` makes from the shown one in the units of the scale. */
  private moveWindow(change: (from: number, to: number) => [number, number]): void {
    const [from, to] = this.xRange();
    const next = change(this.unit(from, "x"), this.unit(to, "x"));
    this.handlers.zoom(this.clamp(this.logarithmic("x") ? [10 ** next[0], 10 ** next[1]] : next));
  }

  /** Keeps a window within the run: one that covers all of it is no zoom. */
  private clamp([from, to]: [number, number]): [number, number] | null {
    const [low, high] = this.content.range ?? [from, to];
    const width = to - from;
    if (width >= high - low) return null;
    if (from < low) return [low, low + width];
    if (to > high) return [high - width, high];
    return [from, to];
  }

  private snap(x: number): number {
    const part = this.content.lines[0]?.parts;
    let best = x;
    let distance = Number.POSITIVE_INFINITY;
    for (const { raw } of part ?? []) {
      const at = nearest(raw.x, x);
      const candidate = raw.x[at];
      if (candidate !== undefined && Math.abs(candidate - x) < distance) {
        best = candidate;
        distance = Math.abs(candidate - x);
      }
    }
    return best;
  }
}
