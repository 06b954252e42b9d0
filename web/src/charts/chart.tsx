// A chart with its name, its legend that follows the cursor, its tools, and a table that says the same.
import { ActionIcon, Menu, Tooltip, useComputedColorScheme } from "@mantine/core";
import { useEffect, useEffectEvent, useMemo, useRef, useState, type KeyboardEvent } from "react";
import { formatInteger, formatValue } from "../format";
import { cancelFrame, onFrame } from "../live/frame";
import { Icon } from "../ui/icons";
import { sayError } from "../ui/toast";
import type { Cursor } from "./cursor";
import type { PlotContent, PlotLine, PlotSettings } from "./content";
import { download, toCsv, toPng } from "./export";
import { PlotView } from "./plot";
import { ChartTable } from "./chart-table";
import "uplot/dist/uPlot.min.css";
import "./chart.css";

export interface ChartModel {
  /** What to draw now; asked for again after every change of the source. */
  content(): PlotContent;
  /** The same with every row of a window (null: of all), where `content` may draw many rows as one point. */
  rows(window: [number, number] | null): Promise<PlotContent>;
  /** "1,914 of 240,000 points", and what was left out. */
  points(window: [number, number] | null): { shown: number; total: number };
  /** What is to be said of the points instead of their number. */
  note?: string | undefined;
  /** Calls back after changes; returns the end of it. */
  subscribe(listener: () => void): () => void;
  stepAt(x: number): number;
  xAt(step: number): number;
}

interface Props {
  id: string;
  /** Of the runs that are shown: what a file made of the chart is called after. */
  of: string;
  title: string;
  unit: string;
  /** How much the values of the smoothed lines are smoothed; absent where none is. */
  smoothing?: number | undefined;
  legend: { label: string; color: string }[];
  model: ChartModel;
  cursor: Cursor;
  logX: boolean;
  logY: boolean;
  /** Absent where a logarithmic axis has no sense. */
  onLogY: (() => void) | null;
  timeOrigin: number | null;
  window: [number, number] | null;
  onWindow: (window: [number, number] | null) => void;
  tall?: boolean;
  xName: string;
}

export function Chart(props: Props) {
  const { title, unit, legend, model, cursor, logX, logY, timeOrigin, window, xName } = props;
  const host = useRef<HTMLDivElement>(null);
  const slider = useRef<HTMLDivElement>(null);
  const values = useRef<(HTMLElement | null)[]>([]);
  const status = useRef<HTMLSpanElement>(null);
  const place = useRef<HTMLSpanElement>(null);
  const plot = useRef<PlotView | null>(null);
  const held = useRef({ model, window, onWindow: props.onWindow });
  const region = useRef<HTMLDivElement>(null);
  const [table, setTable] = useState(false);
  const turned = useRef(false);
  const scheme = useComputedColorScheme("light");
  const whole = xName !== "epoch";
  const settings = useMemo(
    (): PlotSettings => ({ logX, logY, timeOrigin, whole, unit }),
    [logX, logY, timeOrigin, whole, unit],
  );

  // The legend, and what a screen reader hears, at the cursor (at the last point where there is none).
  const tell = useEffectEvent(() => {
    const view = plot.current;
    if (!view) return;
    const x = cursorX(cursor, model);
    view.setCursor(x);
    const at = x ?? view.content.range?.[1] ?? null;
    const said: string[] = [];
    view.content.lines.forEach((line, index) => {
      const { shown, raw } =
        at === null ? { shown: null, raw: null } : x === null ? lastValue(line) : view.valueAt(line, at);
      const text = formatValue(shown) + (x === null ? early(line, view) : "");
      const element = values.current[index];
      if (element) {
        element.textContent = text;
        element.title = raw !== null && raw !== shown ? `raw ${formatValue(raw)}` : "";
      }
      said.push(`${line.label} ${text}`);
    });
    if (place.current) place.current.textContent = x === null ? "" : `${xName} ${view.formatX(x)}`;
    const element = slider.current;
    if (!element || at === null) return;
    const [from, to] = view.content.range ?? [0, 0];
    element.setAttribute("aria-valuemin", String(from));
    element.setAttribute("aria-valuemax", String(to));
    element.setAttribute("aria-valuenow", String(at));
    element.setAttribute("aria-valuetext", `${xName} ${view.formatX(at)}: ${said.join(", ")}`);
  });

  useEffect(() => {
    held.current = { model, window, onWindow: props.onWindow };
  });

  useEffect(() => {
    const element = host.current;
    if (!element) return;
    const view = new PlotView(element, settings, {
      hover: (x) => cursor.hover(x, x === null ? null : held.current.model.stepAt(x)),
      pin: (x) => cursor.hold(x === null ? null : held.current.model.stepAt(x)),
      zoom: (range) => held.current.onWindow(range),
    });
    plot.current = view;
    const sizes = new ResizeObserver(() => view.resize(element.clientWidth, element.clientHeight));
    sizes.observe(element);
    return () => {
      sizes.disconnect();
      view.destroy();
      plot.current = null;
    };
  }, [settings, cursor, scheme, table]);

  useEffect(() => {
    const element = host.current;
    if (!element) return;
    let visible = true;
    let stale = false;
    const draw = (): void => {
      const view = plot.current;
      if (!view) return;
      if (!visible) {
        stale = true;
        return;
      }
      view.show(model.content(), window);
      tell();
      const { shown, total } = model.points(window);
      if (status.current)
        status.current.textContent =
          model.note ??
          (total > shown ? `${formatInteger(shown)} of ${formatInteger(total)} points, extremes kept` : "");
    };
    const request = (): void => onFrame(draw);
    const seen = new IntersectionObserver(([entry]) => {
      visible = entry?.isIntersecting ?? true;
      if (visible && stale) {
        stale = false;
        onFrame(draw);
      }
    });
    seen.observe(element);
    const follow = (): void => tell();
    const point = (): void => onFrame(follow);
    const ends = [model.subscribe(request), cursor.subscribe(point)];
    onFrame(draw);
    return () => {
      for (const end of ends) end();
      cancelFrame(draw);
      cancelFrame(follow);
      seen.disconnect();
    };
  }, [model, cursor, window, settings, scheme, table]);

  // The focus follows from the plot into the table and back; the button between them keeps its own.
  useEffect(() => {
    if (turned.current) (table ? region : slider).current?.focus();
    turned.current = false;
  }, [table]);
  const turn = (event: KeyboardEvent): void => {
    if (event.key !== "t" || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    turned.current = true;
    setTable(!table);
  };

  const onKey = (event: KeyboardEvent): void => {
    turn(event);
    const view = plot.current;
    if (!view || event.ctrlKey || event.metaKey || event.altKey) return;
    const actions: Record<string, () => void> = {
      ArrowLeft: () => walk(view, cursor, model, event.shiftKey ? -10 : -1),
      ArrowRight: () => walk(view, cursor, model, event.shiftKey ? 10 : 1),
      Home: () => walk(view, cursor, model, Number.NEGATIVE_INFINITY),
      End: () => walk(view, cursor, model, Number.POSITIVE_INFINITY),
      Enter: () => cursor.hold(cursor.step ?? model.stepAt(view.content.range?.[1] ?? 0)),
      Escape: () => {
        cursor.hover(null, null);
        cursor.hold(null);
      },
      "+": () => view.zoomBy(0.5, cursorX(cursor, model) ?? undefined),
      "=": () => view.zoomBy(0.5, cursorX(cursor, model) ?? undefined),
      "-": () => view.zoomBy(2, cursorX(cursor, model) ?? undefined),
      "0": () => props.onWindow(null),
      PageUp: () => view.panBy(-0.5),
      PageDown: () => view.panBy(0.5),
      l: () => props.onLogY?.(),
    };
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    event.stopPropagation();
    action();
  };

  const file = `${props.of}-${props.id}`;
  const saveData = (): void =>
    void model
      .rows(window)
      .then((content) =>
        download(new Blob([toCsv(content, window, xName, timeOrigin)], { type: "text/csv" }), `${file}.csv`),
      )
      .catch(sayError);
  const savePicture = (): void => {
    const canvas = plot.current?.u.ctx.canvas;
    const name = unit ? `${title} (${unit})` : title;
    if (canvas) toPng(canvas, name, legend).then((blob) => download(blob, `${file}.png`), sayError);
  };

  return (
    <section className={`card chart${props.tall ? " tall" : ""}`} aria-label={title} data-chart={props.id}>
      <header>
        <h3>
          {title} {unit && <span className="dim unit">{unit}</span>}{" "}
          {props.smoothing !== undefined && props.smoothing > 0 && (
            <span className="dim unit" title={`${props.smoothing} of the average before is kept at each step`}>
              smoothed
            </span>
          )}
        </h3>
        <span className="place num" ref={place} />
        <div className="tools">
          {props.onLogY && (
            <Tooltip label="Logarithmic (l)">
              <button
                type="button"
                className="tool"
                aria-pressed={logY}
                aria-label={`${title}: log scale`}
                onClick={props.onLogY}
              >
                log
              </button>
            </Tooltip>
          )}
          <Tooltip label="As a table (t)">
            <ActionIcon
              size="sm"
              aria-pressed={table}
              aria-label={`${title} as a table`}
              onClick={() => setTable(!table)}
            >
              <Icon name={table ? "spark" : "table"} size={14} />
            </ActionIcon>
          </Tooltip>
          <Menu position="bottom-end" width={150}>
            <Menu.Target>
              <ActionIcon size="sm" aria-label={`${title} as a file`}>
                <Icon name="save" size={14} />
              </ActionIcon>
            </Menu.Target>
            <Menu.Dropdown>
              <Menu.Item onClick={saveData}>Points (CSV)</Menu.Item>
              <Menu.Item disabled={table} onClick={savePicture}>
                Picture (PNG)
              </Menu.Item>
            </Menu.Dropdown>
          </Menu>
        </div>
      </header>
      <div className="legend">
        {legend.map(({ label, color }, index) => (
          <span key={label}>
            <i style={{ background: `var(${color})` }} />
            {label}{" "}
            <b
              className="num"
              ref={(element) => {
                values.current[index] = element;
              }}
            />
          </span>
        ))}
        <span className="status num" ref={status} />
      </div>
      {table ? (
        <ChartTable
          ref={region}
          title={title}
          model={model}
          xName={xName}
          timeOrigin={timeOrigin}
          window={window}
          onKeyDown={turn}
        />
      ) : (
        <div
          ref={slider}
          className="plot"
          role="slider"
          tabIndex={0}
          aria-label={`${title}: cursor over the curve`}
          aria-orientation="horizontal"
          aria-valuemin={0}
          aria-valuemax={0}
          aria-valuenow={0}
          onKeyDown={onKey}
        >
          <div ref={host} className="canvas" />
        </div>
      )}
    </section>
  );
}

function cursorX(cursor: Cursor, model: ChartModel): number | null {
  if (cursor.hoverX !== null) return cursor.hoverX;
  return cursor.held === null ? null : model.xAt(cursor.held);
}

/** Moves the held step along the points that are drawn. */
function walk(view: PlotView, cursor: Cursor, model: ChartModel, by: number): void {
  const stops = view.stops();
  if (!stops.length) return;
  const x = cursorX(cursor, model);
  let at = x === null ? stops.length - 1 : stops.findIndex((stop) => stop >= x - 1e-9);
  if (at < 0) at = stops.length - 1;
  const next = Math.max(0, Math.min(stops.length - 1, x === null && by < 0 ? stops.length - 1 : at + by));
  cursor.hover(null, null);
  cursor.hold(model.stepAt(stops[Number.isFinite(next) ? next : 0] as number));
}

/** Where a line ends well before the axis does; a sparse one always ends a little before. */
function early(line: PlotLine, view: PlotView): string {
  const end = line.parts.at(-1)?.raw.x.at(-1);
  const { range } = view.content;
  if (line.dots || end === undefined || !range) return "";
  return range[1] - end > (range[1] - range[0]) / 50 ? ` at ${view.formatX(end)}` : "";
}

function lastValue(line: PlotLine): { shown: number | null; raw: number | null } {
  const part = line.parts.at(-1);
  const raw = part?.raw.y.at(-1) ?? null;
  const mark = part?.marks.at(-1);
  if (mark && mark.x === part?.raw.x.at(-1)) return { shown: mark.value, raw: mark.value };
  return { shown: part?.smooth?.y.at(-1) ?? raw, raw };
}
