import { useQuery } from "@tanstack/react-query";
import { useSyncExternalStore } from "react";
import { get, runPath } from "../../api/client";
import type { RunEvent } from "../../api/types";
import { formatInteger } from "../../format";
import { useRun, useSummary } from "./context";

const TYPES = "warning,paused,error,note,complete,stopping,resumed,start,checkpoint,command";

/** The run's events that are words rather than numbers, newest first. */
export function useJournal(limit: number): { journal: RunEvent[]; error: Error | null } {
  const { id, store } = useRun();
  useSyncExternalStore(store.subscribe, () => store.others.length);
  const { data, error } = useQuery({
    queryKey: ["run", id, "journal", limit, store.key, store.skips],
    queryFn: ({ signal }) =>
      get<{ events: RunEvent[]; last_seq: number }>(
        `${runPath(id)}/events?types=${TYPES}&newest=true&limit=${limit}`,
        signal,
      ),
    staleTime: Number.POSITIVE_INFINITY,
    gcTime: 0,
  });
  const through = data?.last_seq ?? 0;
  const types = TYPES.split(",");
  const live = data ? store.others.filter((event) => event.seq > through && types.includes(event.type)) : [];
  return { journal: [...(data?.events ?? []), ...live].toReversed(), error };
}

/** What a person should not miss while looking at curves. */
export function Warnings() {
  const { detail } = useRun();
  const run = useSummary();
  const { journal } = useJournal(200);
  const warnings = journal.filter((event) => event.type === "warning");
  const paused = run.status === "paused" ? journal.find((event) => event.type === "paused") : undefined;
  const count = Math.max(warnings.length, detail.counts.warning ?? 0);
  const newest = warnings[0];
  const message = String(newest?.message ?? newest?.kind);
  return (
    <>
      {typeof paused?.reason === "string" && paused.reason !== "" && (
        <div className="notice">
          <strong>Paused at step {formatInteger(paused.step)}.</strong> {paused.reason}
        </div>
      )}
      {count > 0 && !newest && <div className="notice">…</div>}
      {newest && (
        <div className="notice">
          <strong>{count === 1 ? "A warning" : `${formatInteger(count)} warnings, the last`}</strong>
          {/^Step \d/.test(message) ? ": " : ` at step ${formatInteger(newest.step)}: `}
          {message}
        </div>
      )}
    </>
  );
}
