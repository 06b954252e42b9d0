import { SegmentedControl } from "@mantine/core";
import { queryOptions, useQueries, type UseQueryResult } from "@tanstack/react-query";
import { useEffect, useMemo, useState, type ReactNode } from "react";
import { Link } from "wouter";
import { ApiError, get, runPath } from "../../api/client";
import type { RunDetail, Segment, Series } from "../../api/types";
import { LineBook, NOTHING_LIVE, nameOf, type XAxis } from "../../charts/book";
import { Chart, type ChartModel } from "../../charts/chart";
import { Cursor } from "../../charts/cursor";
import { fetchRows, fetchSeries, useSettled } from "../../charts/fetch";
import { COLORS, chartsFor, lossKind, type ChartSpec } from "../../charts/groups";
import type { PlotContent, Window } from "../../charts/content";
import { SmoothingSlider, useSmoothing } from "../../charts/smoothing";
import { pointsOf, type Track } from "../../charts/track";
import { StatusPill, Waiting } from "../../ui/pieces";
import { useUrl } from "../../ui/url";
import { useDoubt } from "../../ui/doubt";
import { commonLine, deltas, originOf, overlay, tracksOf, type Compared } from "./lines";
import { ChangedSettings, Results } from "./tables";
import "./compare.css";

const REFRESH_MS = 5_000;
const POINTS = 500;

interface Read {
  detail: RunDetail;
  series: Series;
}

const comparedQuery = (id: string) =>
  queryOptions({
    queryKey: ["run", id, "compared"],
    queryFn: async ({ signal }): Promise<Read> => {
      const [detail, series] = await Promise.all([
        get<RunDetail>(runPath(id), signal),
        fetchSeries(id, { x: "step", window: null, points: POINTS }, signal),
      ]);
      return { detail, series };
    },
    refetchInterval: ({ state }) => (state.data?.detail.status === "completed" ? false : REFRESH_MS),
  });

/** The same of a window, where all of the run has been reduced. `held`: each run's last answer, until the next one. */
const closerQuery = ({ detail, series }: Read, x: XAxis, window: Window, held: Map<string, Series>) =>
  queryOptions({
    queryKey: ["run", detail.id, "compared", x, window],
    queryFn: async ({ signal }) => {
      const origin = originOf(detail, x);
      const own: Window = window && [window[0] + origin, window[1] + origin];
      const closer = await fetchSeries(detail.id, { x, window: own, points: POINTS }, signal);
      held.set(detail.id, closer);
      return closer;
    },
    placeholderData: () => {
      const last = window ? held.get(detail.id) : undefined;
      return last?.x === x ? last : undefined;
    },
    enabled: window !== null && Object.values(series.tables).some(({ segments }) => segments.some(isReduced)),
    refetchInterval: detail.status === "completed" ? false : REFRESH_MS,
    gcTime: 0,
  });

const isReduced = ({ bucket }: Segment): boolean => bucket > 1;

interface Trouble {
  /** The run's place among those that were asked for. */
  index: number;
  error: Error;
  /** Whether an older answer is shown. */
  held: boolean;
}

function combine(results: UseQueryResult<Read>[]): { found: Read[]; troubles: Trouble[]; waiting: boolean } {
  return {
    found: results.flatMap(({ data }) => data ?? []),
    troubles: results.flatMap(({ error, data }, index) => (error ? [{ index, error, held: data !== undefined }] : [])),
    waiting: results.some(({ data, error }) => !data && !error),
  };
}

/** Of each run what there is of the window, once it has come to rest; undefined where the whole is all there is. */
function useCloser(found: Read[], x: XAxis, window: Window): (Series | undefined)[] {
  const settled = useSettled(x, window);
  const [held] = useState(() => new Map<string, Series>()); // useQueries itself holds nothing from one key to the next
  useEffect(() => {
    if (!settled) held.clear();
  }, [settled, held]);
  return useQueries({ queries: found.map((run) => closerQuery(run, x, settled, held)), combine: dataOf });
}

const dataOf = (results: UseQueryResult<Series>[]): (Series | undefined)[] => results.map(({ data }) => data);

export default function Compare() {
  const [url, setUrl] = useUrl();
  const asked = [...new Set((url.get("runs") ?? "").split(",").filter(Boolean))];
  const ids = asked.slice(0, COLORS.length);
  const named = ids.join(",");
  const base = url.get("base");
  const x = (url.get("x") ?? "step") as XAxis;
  const [smoothing] = useSmoothing();
  const { found, troubles, waiting } = useQueries({ queries: ids.map(comparedQuery), combine });
  useDoubt(troubles.some(({ error }) => !(error instanceof ApiError && error.status === 404)));
  const [window, setWindow] = useState<Window>(null);
  const closer = useCloser(found, x, window);
  const runs = useMemo(() => {
    const places = named.split(",");
    const all = found.map(({ detail, series }, index): Compared => {
      const origin = originOf(detail, x);
      const whole = new LineBook(NOTHING_LIVE, series, x, smoothing);
      const near = closer[index];
      return {
        detail,
        book: near ? new LineBook(NOTHING_LIVE, near, x, smoothing) : whole,
        whole,
        color: COLORS[places.indexOf(detail.id)] as string,
        origin,
      };
    });
    return all.toSorted((a, b) => Number(b.detail.id === base) - Number(a.detail.id === base));
  }, [found, closer, named, base, x, smoothing]);
  if (!ids.length)
    return (
      <p className="empty">
        Choose runs in the <Link href="/">list</Link> to compare them.
      </p>
    );
  if (waiting) return <Waiting what="Reading the runs …" />;
  const leaveOut = (id: string) => (
    <button
      type="button"
      className="linklike"
      aria-label={`Leave out ${id}`}
      onClick={() => setUrl({ runs: asked.filter((other) => other !== id).join(",") || null })}
    >
      ×
    </button>
  );
  return (
    <>
      <div className="spread">
        <h1>Compare</h1>
        <div className="row">
          <SmoothingSlider />
          <SegmentedControl
            aria-label="Horizontal axis"
            value={x}
            onChange={(value) => {
              setWindow(null);
              setUrl({ x: value === "step" ? null : value });
            }}
            data={[
              { value: "step", label: "Step" },
              { value: "time", label: "Time" },
              { value: "epoch", label: "Epoch" },
            ]}
          />
        </div>
      </div>
      {asked.length > ids.length && (
        <div className="notice">
          {ids.length} of {asked.length} runs are shown, as many as there are colours. Left out:{" "}
          {asked.slice(ids.length).join(", ")}.
        </div>
      )}
      <ul className="compared">
        {runs.map(({ detail, color }, index) => (
          <li key={detail.id}>
            <i style={{ background: `var(${color})` }} />
            <Link href={`/runs/${encodeURIComponent(detail.id)}`}>{detail.id}</Link>
            <StatusPill run={detail} />
            {index === 0 ? (
              <span className="dim">baseline</span>
            ) : (
              <button
                type="button"
                className="linklike"
                onClick={() => setUrl({ base: detail.id })}
              >
                make <span className="hidden">{detail.id} the</span> baseline
              </button>
            )}
            {leaveOut(detail.id)}
          </li>
        ))}
        {troubles.map(({ index, error, held }) => (
          <li key={ids[index]} className="missing">
            {held ? `${ids[index]} may be out of date: ` : `${ids[index]} is not shown: `}
            {error.message}
            {!held && leaveOut(ids[index] as string)}
          </li>
        ))}
      </ul>
      {runs.length > 0 && (
        <Overlays runs={runs} x={x} smoothing={smoothing} window={window} onWindow={setWindow}>
          <Results runs={runs} />
          <ChangedSettings runs={runs} />
        </Overlays>
      )}
    </>
  );
}

/** The loss and its difference first, then what `children` tell, then every other curve. */
function Overlays({
  runs,
  x,
  smoothing,
  children,
  ...shared
}: {
  runs: Compared[];
  x: XAxis;
  smoothing: number;
  window: Window;
  onWindow: (window: Window) => void;
  children: ReactNode;
}) {
  const [logged, setLogged] = useState<string[]>([]);
  const cursor = useMemo(() => new Cursor(), []);
  const specs = useMemo(() => {
    const names = new Set(runs.flatMap(({ detail }) => detail.metrics));
    return chartsFor(names, runs.map(({ detail }) => lossKind(detail))).filter((spec) => !spec.stacked);
  }, [runs]);
  const charts = specs.flatMap((spec) =>
    spec.id === "loss" && runs.length > 1
      ? [
          { spec, delta: false },
          { spec, delta: true },
        ]
      : [{ spec, delta: false }],
  );
  const chart = ({ spec, delta }: { spec: ChartSpec; delta: boolean }): ReactNode => {
    const id = delta ? `${spec.id}-delta` : spec.id;
    const log = logged.includes(id) !== (!delta && (spec.log ?? false));
    return (
      <OverlayChart
        key={id}
        id={id}
        spec={spec}
        delta={delta}
        runs={runs}
        smoothing={smoothing}
        cursor={cursor}
        x={x}
        logY={log}
        onLogY={() => setLogged(logged.includes(id) ? logged.filter((other) => other !== id) : [...logged, id])}
        {...shared}
      />
    );
  };
  return (
    <>
      <div className="overlays">{charts.filter(({ spec }) => spec.id === "loss").map(chart)}</div>
      {children}
      <div className="overlays">{charts.filter(({ spec }) => spec.id !== "loss").map(chart)}</div>
    </>
  );
}

interface OverlayProps {
  id: string;
  spec: ChartSpec;
  delta: boolean;
  runs: Compared[];
  smoothing: number;
  cursor: Cursor;
  x: XAxis;
  logY: boolean;
  onLogY: () => void;
  window: Window;
  onWindow: (window: Window) => void;
}

function OverlayChart({ id, spec, delta, runs, smoothing, cursor, x, ...rest }: OverlayProps) {
  const linesOf = delta ? deltas : overlay;
  const lines = useMemo(() => linesOf(spec, runs), [linesOf, spec, runs]);
  const model = useMemo((): ChartModel => {
    const ends = runs.flatMap(({ whole, origin }) => whole.range()?.map((end) => end - origin) ?? []);
    const range: Window = ends.length ? [Math.min(...ends), Math.max(...ends)] : null;
    const references = delta ? [{ label: "baseline", value: 0 }] : [];
    const content = (drawn = lines): PlotContent => ({
      lines: drawn,
      references,
      starts: [],
      pauses: [],
      range,
      stacked: false,
      zero: spec.zero ?? false,
    });
    const tracks = (run: Compared): Track[] => {
      const line = commonLine(spec, delta ? runs : [run]);
      return line ? tracksOf(run, line) : [];
    };
    const own = (run: Compared, window: Window): Window => window && [window[0] + run.origin, window[1] + run.origin];
    return {
      content: () => content(),
      rows: async (window) => {
        if (!runs.some((run) => spec.lines.some((line) => tracksOf(run, line).some(({ reduced }) => reduced))))
          return content();
        const read = async (run: Compared): Promise<Compared> => {
          const series = await fetchRows(run.detail.id, spec.lines.map(nameOf), x, own(run, window));
          return { ...run, book: new LineBook(NOTHING_LIVE, series, x, smoothing) };
        };
        return content(linesOf(spec, await Promise.all(runs.map(read))));
      },
      points: (window) => {
        const counts = runs.map((run) => pointsOf(tracks(run), own(run, window)));
        const sum = (name: "shown" | "total"): number => counts.reduce((total, count) => total + count[name], 0);
        return { shown: sum("shown"), total: sum("total") };
      },
      subscribe: () => () => {},
      // The cursor is shared by charts of one axis: here x itself is what is held.
      stepAt: (value) => value,
      xAt: (value) => value,
    };
  }, [lines, linesOf, delta, spec, runs, x, smoothing]);
  const title = delta ? `${spec.title}: difference from ${runs[0]?.detail.id}` : spec.title;
  const legend = lines.map(({ label, color }) => ({ label, color }));
  return (
    <Chart
      id={id}
      of="compared"
      title={title}
      unit={delta ? "" : spec.unit}
      smoothing={spec.smoothed ? smoothing : undefined}
      legend={legend}
      model={model}
      cursor={cursor}
      logX={false}
      timeOrigin={x === "time" ? 0 : null}
      xName={x}
      {...rest}
    />
  );
}
