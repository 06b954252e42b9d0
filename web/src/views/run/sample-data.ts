import { useQuery } from "@tanstack/react-query";
import { useMemo, useSyncExternalStore } from "react";
import { samplesQuery } from "../../api/queries";
import type { Probe, SampleEvent } from "../../api/types";
import { useRun } from "./context";

export interface ProbeRow extends Probe {
  /** Samples by step, the newest attempt's where two attempts passed the same step. */
  at: Map<number, SampleEvent>;
}

export interface SampleData {
  rows: ProbeRow[];
  steps: number[];
  /** Samples that a person asked for, newest first. */
  asked: SampleEvent[];
}

export function useSamples(): { data: SampleData | null; error: Error | null } {
  const { id, store } = useRun();
  const { data, error } = useQuery(samplesQuery(id, `${store.key}.${store.skips}`));
  const live = useSyncExternalStore(store.subscribe, () => store.others.length);
  const arranged = useMemo(() => {
    if (!data) return null;
    const fresh = store.others.slice(0, live).filter((event) => event.type === "sample" && event.seq > data.last_seq);
    return arrange(data.probes, [...data.samples, ...(fresh as SampleEvent[])]);
  }, [data, store, live]);
  return { data: arranged, error };
}

export function arrange(probes: Probe[], samples: SampleEvent[]): SampleData {
  const rows = new Map<string, ProbeRow>();
  for (const probe of probes) rows.set(probe.probe, { ...probe, at: new Map() });
  const asked: SampleEvent[] = [];
  const steps = new Set<number>();
  for (const sample of samples) {
    if (sample.command !== undefined || sample.probe === undefined) {
      asked.unshift(sample);
      continue;
    }
    let row = rows.get(sample.probe);
    if (!row) {
      const { probe, prompt = null, image = null, references = [] } = sample;
      row = { probe, prompt, image, references, at: new Map() };
      rows.set(probe, row);
    }
    row.at.set(sample.step, sample);
    steps.add(sample.step);
  }
  const kept = [...rows.values()].filter((row) => row.at.size > 0);
  return { rows: kept, steps: [...steps].sort((a, b) => a - b), asked };
}

/** The last of these growing steps that is not after `step`; the very last where there is no step to look for. */
export function stepBefore(steps: number[], step: number | null): number | null {
  if (step === null) return steps.at(-1) ?? null;
  return steps.findLast((candidate) => candidate <= step) ?? steps[0] ?? null;
}

export function pictureUrl(id: string, image: string): string {
  return `/api/runs/${encodeURIComponent(id)}/samples/${encodeURIComponent(image)}`;
}
