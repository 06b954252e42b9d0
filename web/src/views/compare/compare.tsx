import { SegmentedControl } from "@mantine/core";
import { queryOptions, useQueries, type UseQueryResult } from "@tanstack/react-query";
import { useMemo, useState, type ReactNode } from "react";
import { Link } from "wouter";
import { ApiError, get, runPath } from "../../api/client";
import type { RunDetail, Series } from "../../api/types";
import { LineBook, NOTHING_LIVE, type XAxis } from "../../charts/book";
import { Chart, type ChartModel } from "../../charts/chart";
import { Cursor } from "../../charts/cursor";
import { chartsFor, lossKind, type ChartLine, type ChartSpec } from "../../charts/groups";
import type { PlotLine } from "../../charts/content";
import { SmoothingSlider, useSmoothing } from "../../charts/smoothing";
import { interpolate, type Mark, type Polyline, type Track } from "../../charts/track";
import { ACTIVE, StatusPill, Waiting } from "../../ui/pieces";
import { useUrl } from "../../ui/url";
import { useDoubt } from "../../ui/doubt";
import { ChangedSettings, Results } from "./tables";
import "./compare.css";

const COLORS = ["--c1", "--c2", "--c3", "--c4", "--c5", "--c6", "--c7", "--c8"];
const REFRESH_MS = 5_000;

export interface Compared {
  detail: RunDetail;
  book: LineBook;
  color: string;
  /** Subtracted from x, so that all runs begin together on the time axis. */
  origin: number;
}

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
        get<Series>(`${runPath(id)}/series?x=step&points=500`, signal),
      ]);
      return { detail, series };
    },
    refetchInterval: ({ state }) => (!state.data || ACTIVE.has(state.data.detail.status) ? REFRESH_MS : false),
  });

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
  const runs = useMemo(() => {
    const places = named.split(",");
    const all = found.map(
      ({ detail, series }): Compared => ({
        detail,
        book: new LineBook(NOTHING_LIVE, series, x, smoothing),
        color: COLORS[places.indexOf(detail.id)] as string,
        origin: x === "time" ? (detail.started ?? detail.created) : 0,
      }),
    );
    return all.toSorted((a, b) => Number(b.detail.id === base) - Number(a.detail.id === base));
  }, [found, named, base, x, smoothing]);
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
            onChange={(value) => setUrl({ x: value === "step" ? null : value })}
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
        <Overlays runs={runs} x={x} smoothing={smoothing}>
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
}: {
  runs: Compared[];
  x: XAxis;
  smoothing: number;
  children: ReactNode;
}) {
  const [window, setWindow] = useState<[number, number] | null>(null);
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
        window={window}
        onWindow={setWindow}
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
  window: [number, number] | null;
  onWindow: (window: [number, number] | null) => void;
}

function OverlayChart({ id, spec, delta, runs, smoothing, cursor, x, ...rest }: OverlayProps) {
  const lines = useMemo(() => (delta ? deltas(spec, runs) : overlay(spec, runs)), [spec, delta, runs]);
  const model = useMemo((): ChartModel => {
    const ends = (delta ? overlay(spec, runs) : lines).flatMap((line) =>
      line.parts.flatMap(({ raw }) => (raw.x.length ? [raw.x[0] as number, raw.x.at(-1) as number] : [])),
    );
    const range: [number, number] | null = ends.length ? [Math.min(...ends), Math.max(...ends)] : null;
    const references = delta ? [{ label: "baseline", value: 0 }] : [];
    return {
      content: () => ({ lines, references, starts: [], pauses: [], range, stacked: false, zero: spec.zero ?? false }),
      points: () => ({ shown: 0, total: 0 }),
      subscribe: () => () => {},
      // The cursor is shared by charts of one axis: here x itself is what is held.
      stepAt: (value) => value,
      xAt: (value) => value,
    };
  }, [lines, delta, spec, runs]);
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

/** None of a training loss that is of another kind than the line: it belongs to another chart. */
function tracksOf({ book, detail }: Compared, line: ChartLine): Track[] {
  return line.of && line.of !== lossKind(detail) ? [] : book.tracks(line);
}

function overlay(spec: ChartSpec, runs: Compared[]): PlotLine[] {
  return runs.flatMap((run) =>
    spec.lines.flatMap((line): PlotLine[] => {
      const tracks = tracksOf(run, line);
      if (!tracks.length) return [];
      const suffix = spec.lines.length > 1 ? ` · ${line.label}` : "";
      return [
        {
          id: `${run.detail.id}/${line.table}/${line.key}`,
          label: run.detail.id + suffix,
          color: run.color,
          dots: line.dots ?? false,
          ...(line.table === "validation" && spec.lines.length > 1 ? { dash: [4, 3] } : {}),
          parts: tracks.map(({ raw, smooth, marks }) => ({
            raw: shift(raw, run.origin),
            smooth: spec.smoothed && line.table === "metrics" ? shift(smooth, run.origin) : null,
            marks: marks.map((mark) => ({ ...mark, x: mark.x - run.origin })),
          })),
        },
      ];
    }),
  );
}

/** The smoothed training loss of each run, less the first run's at the same x. */
function deltas(spec: ChartSpec, runs: Compared[]): PlotLine[] {
  const training = spec.lines.find((line) => line.table === "metrics") ?? spec.lines[0];
  const baseline = runs[0];
  if (!training || !baseline) return [];
  const smooth = (run: Compared): { line: Polyline; marks: Mark[] }[] =>
    tracksOf(run, training).map((track) => ({
      line: shift(track.smooth, run.origin),
      marks: track.marks.map((mark) => ({ ...mark, x: mark.x - run.origin })),
    }));
  const against = smooth(baseline).toReversed(); // where attempts overlap, the latest one counts
  const notFinite = new Map(against.flatMap(({ marks }) => marks.map(({ x }) => [x, { x, value: Number.NaN }])));
  return runs.slice(1).map((run) => ({
    id: `${run.detail.id}/delta`,
    label: run.detail.id,
    color: run.color,
    dots: false,
    parts: smooth(run).map(({ line, marks: own }) => {
      const points: [number, number][] = [];
      // What is not finite in either run is not finite in the difference: a gap with a mark, as in the run's own line.
      const marks = new Map(own.map((mark) => [mark.x, mark]));
      line.x.forEach((at, index) => {
        const mark = notFinite.get(at);
        if (mark) marks.set(at, mark);
        const other = against.map((candidate) => interpolate(candidate.line, at)).find((value) => value !== null);
        if (mark || other === undefined || other === null) return;
        points.push([at, (line.y[index] as number) - other]);
      });
      for (const x of marks.keys()) points.push([x, Number.NaN]);
      points.sort(([a], [b]) => a - b);
      const raw: Polyline = { x: points.map(([x]) => x), y: points.map(([, y]) => y) };
      return { raw, smooth: null, marks: [...marks.values()].sort((a, b) => a.x - b.x) };
    }),
  }));
}

function shift(line: Polyline, origin: number): Polyline {
  return origin ? { x: line.x.map((x) => x - origin), y: line.y } : line;
}
