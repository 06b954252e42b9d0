import { useQueryClient } from "@tanstack/react-query";
import { createContext, useContext, useEffect, useState, useSyncExternalStore } from "react";
import { askAgain, runQuery } from "../../api/queries";
import type { RunDetail, RunSummary } from "../../api/types";
import { Cursor } from "../../charts/cursor";
import type { Connection } from "../../live/feed";
import { RunStore } from "../../live/run-store";

/** What all parts of a run's view share. */
export interface RunContextValue {
  id: string;
  detail: RunDetail;
  store: RunStore;
  cursor: Cursor;
}

export const RunContext = createContext<RunContextValue | null>(null);

export function useRun(): RunContextValue {
  const value = useContext(RunContext);
  if (!value) throw new Error("useRun outside of a run's view");
  return value;
}

/** How the run stands: what the socket said last, else what the detail said. Its numbers may be old. */
export function useSummary(): RunSummary {
  const { store, detail } = useRun();
  return useSyncExternalStore(store.subscribe, () => store.standing) ?? detail;
}

/** The same with the newest numbers: renders again as often as they are shown. */
export function useNumbers(): RunSummary {
  const { store, detail } = useRun();
  useStoreTicks(store);
  return store.run ?? detail;
}

export function useConnection(): Connection {
  const { store } = useRun();
  return useSyncExternalStore(store.subscribe, () => store.connection);
}

/** Renders again whenever the store tells of changes. */
export function useStoreTicks(store: RunStore): void {
  useSyncExternalStore(store.subscribe, () => store.version);
}

const CHANGES = new Set(["start", "paused", "resumed", "stopping", "complete", "error"]);

/** Opens the run's socket after what `detail` holds, and asks anew for what an event has changed. */
export function useRunStore(detail: RunDetail | undefined): RunStore | null {
  const client = useQueryClient();
  const [store, setStore] = useState<RunStore | null>(null);
  const [run, setRun] = useState(0); // grows when the name has gone over to another run
  const id = detail?.id;
  useEffect(() => {
    if (id === undefined) return;
    const { seq = 0, started = null } = client.getQueryData(runQuery(id).queryKey) ?? {};
    const made = new RunStore(id, seq, started);
    const renew = async (): Promise<void> => {
      await client.invalidateQueries({ queryKey: runQuery(id).queryKey });
      setRun((count) => count + 1);
    };
    const end = made.onEvent((event) => {
      if (CHANGES.has(event.type)) void client.invalidateQueries({ queryKey: runQuery(id).queryKey, exact: true });
      if (event.type === "checkpoint") void client.invalidateQueries({ queryKey: ["run", id, "checkpoints"] });
      if (event.type === "complete") void client.invalidateQueries({ queryKey: ["models"] });
    });
    let [status, skips, connection] = ["", 0, made.connection];
    const endStatus = made.subscribe(() => {
      if (made.replaced) return void renew();
      const now = made.run?.status ?? "";
      if ((status && now !== status) || made.skips !== skips)
        void client.invalidateQueries({ queryKey: runQuery(id).queryKey, exact: true });
      status = now; // a crash, for one, is no event
      skips = made.skips;
      if (connection === "reconnecting" && made.connection === "live") askAgain(client);
      connection = made.connection;
    });
    setStore(made);
    expose(made);
    return () => {
      endStatus();
      end();
      made.close();
      setStore(null);
    };
  }, [id, client, run]);
  return store;
}

declare global {
  interface Window {
    /** For the console and for tests: what the page holds of the run that is open. */
    limner?: {
      run: string;
      held: () => {
        ranges: [number, number][];
        count: number;
        duplicates: number;
        cuts: number;
        connection: Connection;
      };
    };
  }
}

function expose(store: RunStore): void {
  window.limner = {
    run: store.id,
    held: () => {
      const { ranges, count, duplicates } = store.feed.held;
      return { ranges, count, duplicates, cuts: store.feed.cuts, connection: store.connection };
    },
  };
}
