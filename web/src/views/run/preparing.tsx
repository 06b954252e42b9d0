import { useQuery } from "@tanstack/react-query";
import { get, runPath } from "../../api/client";
import type { RunEvent } from "../../api/types";
import { formatInteger } from "../../format";
import { ACTIVE } from "../../ui/pieces";
import { useRun, useStoreTicks, useSummary } from "./context";

/** What a run does before its first step: it waits for its turn, or prepares data. */
export function Preparing() {
  const { id, store } = useRun();
  const run = useSummary();
  useStoreTicks(store);
  const { data } = useQuery({
    queryKey: ["run", id, "progress", store.key],
    queryFn: ({ signal }) =>
      get<{ events: RunEvent[] }>(`${runPath(id)}/events?types=progress&newest=true&limit=1`, signal),
  });
  const progress = store.progress ?? data?.events.at(-1);
  if (run.status === "queued")
    return (
      <p className="empty">{run.queue_position ? "This run waits for its turn." : "This run has not been started."}</p>
    );
  if (!ACTIVE.has(run.status)) return <p className="empty">It ended before its first step.</p>;
  if (!progress) return <p className="empty">No measurement yet. Curves appear with the first step.</p>;
  const [done, total] = [Number(progress.done ?? 0), Number(progress.total ?? 0)];
  return (
    <div className="empty preparing">
      <h2>{String(progress.phase ?? "preparing")}</h2>
      {total > 0 && <progress value={done} max={total} aria-label={`${progress.phase}: ${done} of ${total}`} />}
      <p className="num dim">
        {total > 0 && `${formatInteger(done)} of ${formatInteger(total)} ${progress.unit ?? ""}`}
      </p>
    </div>
  );
}
