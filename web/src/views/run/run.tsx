import { useQuery } from "@tanstack/react-query";
import { useEffect, useMemo, useState } from "react";
import { Link, useLocation } from "wouter";
import { ApiError } from "../../api/client";
import { runQuery } from "../../api/queries";
import { Cursor } from "../../charts/cursor";
import { formatPercent } from "../../format";
import { useKeys } from "../../ui/keys";
import { Failure, Waiting } from "../../ui/pieces";
import { useUrl } from "../../ui/url";
import { Charts } from "./charts";
import { Checkpoints } from "./checkpoints";
import { RunContext, useNumbers, useRunStore } from "./context";
import { RunHeader } from "./header";
import { LogView } from "./log";
import { Samples } from "./samples";
import { Settings } from "./settings";
import "./run.css";
import "./samples.css";

const VIEWS = [
  ["charts", "Charts", Charts],
  ["samples", "Samples", Samples],
  ["checkpoints", "Checkpoints", Checkpoints],
  ["log", "Log", LogView],
  ["settings", "Settings", Settings],
] as const;

const RETRY_MS = 3_000;

export default function RunView({ id, view }: { id: string; view: string }) {
  // A run that is not there yet may come: another page, or a terminal, begins it.
  const { data: detail, error } = useQuery({
    ...runQuery(id),
    refetchInterval: ({ state }) => (state.error ? RETRY_MS : false),
  });
  const store = useRunStore(detail);
  const [url, setUrl] = useUrl();
  const [cursor] = useState(() => {
    const made = new Cursor();
    const step = url.get("step");
    if (step !== null && Number.isFinite(Number(step))) made.held = Number(step);
    return made;
  });
  // The held step goes into the address a moment after it has come to rest.
  useEffect(() => {
    let timer: ReturnType<typeof setTimeout> | undefined;
    const end = cursor.subscribe(() => {
      clearTimeout(timer);
      timer = setTimeout(() => setUrl({ step: cursor.held === null ? null : String(cursor.held) }), 250);
    });
    return () => {
      end();
      clearTimeout(timer);
    };
  }, [cursor, setUrl]);
  const value = useMemo(() => (detail && store ? { id, detail, store, cursor } : null), [id, detail, store, cursor]);
  if (error instanceof ApiError && error.status === 404)
    return (
      <div className="empty">
        <h2>There is no run {id}</h2>
        <p>{error.message}</p>
        <Link href="/">All runs</Link>
      </div>
    );
  if (error && !detail) return <Failure error={error} what="The run cannot be read." />;
  if (!value) return <Waiting what="Opening the run …" />;
  return (
    <RunContext value={value}>
      <Title />
      <RunHeader />
      <Tabs id={id} view={view} search={url.toString()} />
      <Content view={view} />
    </RunContext>
  );
}

function Tabs({ id, view, search }: { id: string; view: string; search: string }) {
  const [, navigate] = useLocation();
  const path = (name: string): string =>
    `/runs/${encodeURIComponent(id)}${name === "charts" ? "" : `/${name}`}${search ? `?${search}` : ""}`;
  useKeys(Object.fromEntries(VIEWS.map(([name], index) => [String(index + 1), () => navigate(path(name))])));
  return (
    <nav className="tabs" aria-label="Views of the run">
      {VIEWS.map(([name, label]) => (
        <Link key={name} href={path(name)} aria-current={view === name ? "page" : undefined}>
          {label}
        </Link>
      ))}
    </nav>
  );
}

function Content({ view }: { view: string }) {
  const found = VIEWS.find(([name]) => name === view);
  if (!found) return <p className="empty">A run has no view “{view}”.</p>;
  const View = found[2];
  return <View />;
}

const SIGNS: Partial<Record<string, string>> = { paused: "❚❚ ", crashed: "✕ ", failed: "✕ ", completed: "✓ " };

function Title() {
  const { id, status, step, total_steps } = useNumbers();
  const share = total_steps && status !== "completed" ? `${formatPercent(Math.min(1, step / total_steps))} · ` : "";
  const title = `${SIGNS[status] ?? ""}${share}${id} – Limner`;
  useEffect(() => {
    document.title = title;
  }, [title]);
  return null;
}
