import { Button, SegmentedControl, Switch } from "@mantine/core";
import { useDebouncedValue } from "@mantine/hooks";
import { keepPreviousData, useQuery } from "@tanstack/react-query";
import { useCallback, useEffect, useMemo, useState, useSyncExternalStore } from "react";
import { LineBook, NOTHING_LIVE, nameOf, type XAxis } from "../../charts/book";
import { Chart, type ChartModel } from "../../charts/chart";
import { useHeldStep } from "../../charts/cursor";
import { fetchRows, fetchSeries, useSettled } from "../../charts/fetch";
import { chartsFor, lossKind, type ChartSpec } from "../../charts/groups";
import type { PlotContent, Window } from "../../charts/content";
import { SmoothingSlider, useSmoothing } from "../../charts/smoothing";
import { pointsOf } from "../../charts/track";
import { formatInteger, toNumber } from "../../format";
import { MANY_ROWS, type RunStore } from "../../live/run-store";
import { Failure, Waiting } from "../../ui/pieces";
import { useUrl } from "../../ui/url";
import { useRun } from "./context";
import { Preparing } from "./preparing";
import { SamplesAtCursor } from "./samples-at-cursor";
import { Warnings } from "./warnings";

const BUCKETS = 700;
/** A table with fewer rows is wholly there: zooming asks for nothing. */
const ALL_THERE = 2_500;

export function Charts() {
  const { id, detail, store, cursor } = useRun();
  const [url, setUrl] = useUrl();
  const unit = detail.unit ?? "tokens";
  const x = xAxis(url.get("x"), unit);
  const [smoothing] = useSmoothing();
  const logX = url.has("logx");
  const logged = (url.get("logy") ?? "").split(",").filter(Boolean);
  const [window, setWindow] = useWindow(url, setUrl);
  const names = useNames(store, detail.metrics);
  const kind = lossKind({ ...detail, metrics: names });
  const specs = useMemo(() => chartsFor(names, [kind]), [names, kind]);
  const series = useSeries(id, store, specs, x, window);
  const book = useMemo(
    () => (series.data ? new LineBook(store, series.data, x, smoothing) : null),
    [store, series.data, x, smoothing],
  );
  const held = useHeldStep(cursor);
  if (!specs.length) return <Preparing />;
  if (!book && series.error) return <Failure error={series.error} what="The curves cannot be read." />;
  if (!book) return <Waiting what="Reading the curves …" />;
  const origin = book.x === "time" ? (detail.started ?? detail.created) : null;
  const toggleLog = (chart: string): void => {
    const next = logged.includes(chart) ? logged.filter((other) => other !== chart) : [...logged, chart];
    setUrl({ logy: next.join(",") || null });
  };
  return (
    <>
      <div className="chart-bar">
        <SegmentedControl
          aria-label="Horizontal axis"
          value={x}
          onChange={(value) => {
            setWindow(null);
            setUrl({ x: value === "step" ? null : value, from: null, to: null });
          }}
          data={[
            { value: "step", label: "Step" },
            { value: unit, label: unit === "tokens" ? "Tokens" : "Captions" },
            { value: "time", label: "Time" },
            { value: "epoch", label: "Epoch" },
          ]}
        />
        <SmoothingSlider />
        <Switch
          label="Log x"
          checked={logX}
          disabled={x === "time"}
          onChange={() => setUrl({ logx: logX ? null : "1" })}
        />
        <div className="row end">
          {held !== null && (
            <button
              type="button"
              className="held num"
              onClick={() => cursor.hold(null)}
              title="Let the cursor go (Esc)"
            >
              step {formatInteger(held)} held ×
            </button>
          )}
          <Button variant="default" disabled={!window} onClick={() => setWindow(null)}>
            Show all
          </Button>
        </div>
      </div>
      {series.error && <Failure error={series.error} what="The curves may be out of date." />}
      <Warnings />
      <div className="charts">
        {specs.map((spec, index) => (
          <RunChart
            key={spec.id}
            spec={spec}
            book={book}
            tall={index === 0}
            logX={logX}
            logY={!spec.stacked && logged.includes(spec.id) !== (spec.log ?? false)}
            onLogY={spec.stacked ? null : () => toggleLog(spec.id)}
            window={window}
            onWindow={setWindow}
            timeOrigin={origin}
          />
        ))}
        <SamplesAtCursor />
      </div>
    </>
  );
}

interface RunChartProps {
  spec: ChartSpec;
  book: LineBook;
  tall: boolean;
  logX: boolean;
  logY: boolean;
  onLogY: (() => void) | null;
  window: Window;
  onWindow: (window: Window) => void;
  timeOrigin: number | null;
}

function RunChart({ spec, book, ...rest }: RunChartProps) {
  const { store, detail, cursor } = useRun();
  const model = useMemo((): ChartModel => {
    const content = (from = book): PlotContent => ({
      lines: spec.lines.map((line) => ({
        id: `${line.table}/${line.key}`,
        label: line.label,
        color: line.color,
        dots: line.dots ?? false,
        parts: from.tracks(line).map(({ raw, smooth, marks, placed }) => ({
          raw,
          smooth: (spec.smoothed || spec.stacked) && line.table === "metrics" ? smooth : null,
          marks,
          placed,
        })),
      })),
      references: spec.references ? references(detail.start) : [],
      ...interruptions(book, detail),
      range: book.range(),
      stacked: spec.stacked ?? false,
      zero: spec.zero ?? false,
    });
    const points = (window: Window): { shown: number; total: number } => {
      const [line] = spec.lines;
      return pointsOf(line ? book.tracks(line) : [], window);
    };
    const rows = async (window: Window): Promise<PlotContent> => {
      if (!spec.lines.some((line) => book.tracks(line).some((track) => track.reduced))) return content();
      const series = await fetchRows(detail.id, spec.lines.map(nameOf), book.x, window);
      return content(new LineBook(NOTHING_LIVE, series, book.x, book.smoothing));
    };
    return {
      content: () => content(),
      rows,
      points,
      note: book.firstLook ? "a first look, while the server reads the log" : undefined,
      subscribe: store.subscribe,
      stepAt: (x) => book.stepAt(x),
      xAt: (step) => book.xAt(step),
    };
  }, [spec, book, detail, store]);
  const legend = spec.lines.map(({ label, color }) => ({ label, color }));
  return (
    <Chart
      id={spec.id}
      of={detail.id}
      title={spec.title}
      unit={spec.unit}
      smoothing={spec.smoothed || spec.stacked ? book.smoothing : undefined}
      legend={legend}
      model={model}
      cursor={cursor}
      xName={book.x}
      {...rest}
    />
  );
}

/** Attempts and pauses on the current axis. */
function interruptions(
  book: LineBook,
  detail: ReturnType<typeof useRun>["detail"],
): Pick<PlotContent, "starts" | "pauses"> {
  const time = book.x === "time";
  return {
    starts: detail.attempts
      .filter(({ attempt, first_step }) => attempt > 1 && Number.isFinite(first_step))
      .map(({ attempt, started, first_step }) => ({
        x: time ? started : book.xAt(first_step),
        label: `attempt ${attempt}`,
      })),
    pauses: detail.pauses.map(({ from, to, step }) => {
      const x = time ? from : book.xAt(step);
      return { from: x, to: time ? (to ?? Date.now() / 1000) : x };
    }),
  };
}

function references(start: Record<string, unknown> | null): PlotContent["references"] {
  const lines = (start?.reference_lines ?? {}) as Record<string, unknown>;
  return Object.entries(lines).flatMap(([label, value]) => {
    const number = toNumber(value);
    return number === null ? [] : [{ label, value: number }];
  });
}

function xAxis(asked: string | null, unit: string): XAxis {
  return asked === "time" || asked === "epoch" || asked === unit ? (asked as XAxis) : "step";
}

/** Every metric that the server or the socket has named. A name that only the socket knows is asked for anew. */
function useNames(store: RunStore, known: string[]): string[] {
  const live = useSyncExternalStore(store.subscribe, () => store.metricNames());
  return useMemo(() => [...new Set([...known, ...live])].sort(), [known, live]);
}

function useSeries(id: string, store: RunStore, specs: ChartSpec[], x: XAxis, window: Window) {
  const [epoch, setEpoch] = useState(0); // grows when so many live rows are held that a fresh base is cheaper
  const names = specs.flatMap(({ lines }) => lines.map(nameOf));
  const wanted = [...new Set(names)].sort().join(",");
  const whole = useQuery({
    queryKey: ["run", id, "series", wanted, store.key, store.skips, epoch],
    queryFn: ({ signal }) => fetchSeries(id, { x: "step", metrics: wanted, window: null, points: BUCKETS }, signal),
    staleTime: Number.POSITIVE_INFINITY,
    gcTime: 0,
    enabled: specs.length > 0,
    placeholderData: keepPreviousData,
  });
  const based = whole.data?.tables.metrics?.total ?? 0;
  const reduced = useSyncExternalStore(store.subscribe, () => based + store.metrics.rows > ALL_THERE);
  const full = useSyncExternalStore(store.subscribe, () => store.metrics.rows > MANY_ROWS);
  const settled = useSettled(x, window);
  const detail = useQuery({
    queryKey: ["run", id, "series", x, wanted, settled, store.key, store.skips, epoch],
    queryFn: ({ signal }) => fetchSeries(id, { x, metrics: wanted, window: settled, points: BUCKETS }, signal),
    enabled: settled !== null && reduced,
    staleTime: Number.POSITIVE_INFINITY,
    gcTime: 0,
    placeholderData: (held, query) => (query?.queryKey[3] === x ? held : undefined),
  });
  const base = settled && reduced ? (detail.data ?? whole.data) : whole.data;
  useEffect(() => {
    if (full) setEpoch((count) => count + 1);
  }, [full]);
  useEffect(() => {
    if (epoch > 0 && whole.data && !whole.isPlaceholderData) store.metrics.dropThrough(whole.data.to_seq);
  }, [whole.data, epoch, store, whole.isPlaceholderData]);
  return { data: base, error: whole.error };
}

/** The zoomed range: at once on the charts, a moment later in the address. */
function useWindow(url: URLSearchParams, setUrl: ReturnType<typeof useUrl>[1]): [Window, (window: Window) => void] {
  const [window, setWindow] = useState<Window>(() => {
    const [from, to] = [Number(url.get("from") ?? Number.NaN), Number(url.get("to") ?? Number.NaN)];
    return from < to ? [from, to] : null;
  });
  const [settled] = useDebouncedValue(window, 400);
  useEffect(() => {
    const name = (value: number | undefined): string | null =>
      value === undefined ? null : String(Number(value.toPrecision(12)));
    setUrl({ from: name(settled?.[0]), to: name(settled?.[1]) });
  }, [settled, setUrl]);
  const set = useCallback((next: Window) => setWindow(next), []);
  return [window, set];
}
