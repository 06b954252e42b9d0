// Every question that the page asks the server, by its query key.
import { queryOptions, useMutation, useQueryClient, type QueryClient } from "@tanstack/react-query";
import { get, runPath, send } from "./client";
import type {
  Action,
  CatalogueEntry,
  Checkpoint,
  Health,
  Models,
  Preset,
  RunDetail,
  RunList,
  RunSummary,
  Samples,
  SchemaNode,
} from "./types";

export const healthQuery = queryOptions({
  queryKey: ["health"],
  queryFn: ({ signal }) => get<Health>("/api/health", signal),
  refetchInterval: 15_000,
});

export const runsQuery = queryOptions({
  queryKey: ["runs"],
  queryFn: ({ signal }) => get<RunList>("/api/runs", signal),
  refetchInterval: 2_000,
});

export const runQuery = (id: string) =>
  queryOptions({ queryKey: ["run", id], queryFn: ({ signal }) => get<RunDetail>(runPath(id), signal) });

/** `opening` names the page's socket to the run: later samples come over it, so an older answer must not be kept. */
export const samplesQuery = (id: string, opening: string) =>
  queryOptions({
    queryKey: ["run", id, "samples", opening],
    queryFn: ({ signal }) => get<Samples>(`${runPath(id)}/samples?limit=10000`, signal),
    staleTime: Number.POSITIVE_INFINITY,
    gcTime: 0,
  });

export const checkpointsQuery = (id: string) =>
  queryOptions({
    queryKey: ["run", id, "checkpoints"],
    queryFn: async ({ signal }) =>
      (await get<{ checkpoints: Checkpoint[] }>(`${runPath(id)}/checkpoints`, signal)).checkpoints,
  });

export const modelsQuery = queryOptions({
  queryKey: ["models"],
  queryFn: ({ signal }) => get<Models>("/api/models", signal),
  refetchInterval: 10_000,
});

export const schemasQuery = queryOptions({
  queryKey: ["schemas"],
  queryFn: ({ signal }) => get<Record<string, SchemaNode>>("/api/schemas", signal),
  staleTime: Number.POSITIVE_INFINITY,
});

export const presetsQuery = queryOptions({
  queryKey: ["presets"],
  queryFn: async ({ signal }) => (await get<{ presets: Preset[] }>("/api/presets", signal)).presets,
  staleTime: Number.POSITIVE_INFINITY,
});

export const corporaQuery = queryOptions({
  queryKey: ["corpora"],
  queryFn: async ({ signal }) => (await get<{ corpora: CatalogueEntry[] }>("/api/corpora", signal)).corpora,
});

export const datasetsQuery = queryOptions({
  queryKey: ["datasets"],
  queryFn: async ({ signal }) => (await get<{ datasets: CatalogueEntry[] }>("/api/datasets", signal)).datasets,
});

/** Asks again for all that is shown and could not be had: the server is back. */
export function askAgain(client: QueryClient): void {
  void client.refetchQueries({ type: "active", predicate: ({ state }) => state.status === "error" });
}

/** Asks a run for something; `body` as the API says for the action. */
export function useRunAction(id: string) {
  const client = useQueryClient();
  return useMutation({
    mutationFn: ({ action, body }: { action: Exclude<Action, "delete">; body?: unknown }) =>
      send<{ command: string | null }>("POST", `${runPath(id)}/${action}`, body),
    onSettled: () => {
      void client.invalidateQueries({ queryKey: ["runs"] });
      void client.invalidateQueries({ queryKey: ["run", id], exact: true });
    },
  });
}

export function usePatchRun() {
  const client = useQueryClient();
  return useMutation({
    mutationFn: ({ id, ...change }: { id: string; tags?: string[]; note?: string; pinned?: boolean }) =>
      send<RunSummary>("PATCH", runPath(id), change),
    onSuccess: (run) => {
      client.setQueryData(runsQuery.queryKey, (held) =>
        held ? { ...held, runs: held.runs.map((other) => (other.id === run.id ? run : other)) } : held,
      );
      void client.invalidateQueries({ queryKey: ["run", run.id], exact: true });
    },
  });
}
