// What the page holds of one run since it was opened: live metrics as columns, the other events as they came.
import type { RunEvent, RunSummary } from "../api/types";
import { Feed, type Connection } from "./feed";
import { onFrame } from "./frame";
import { LiveTable } from "./table";

/** Rows of live metrics above which the charts ask the server for a fresh base, and the rows are let go. */
export const MANY_ROWS = 30_000;

let openings = 0;

export class RunStore {
  readonly metrics = new LiveTable();
  readonly validation = new LiveTable();
  /** Events that are no numbers: samples, checkpoints, warnings, notes, acknowledgements ... */
  readonly others: RunEvent[] = [];
  /** How far the preparation of data has come; null once training steps come. */
  progress: RunEvent | null = null;
  connection: Connection = "connecting";
  run: RunSummary | null = null;
  /** Grows when events were skipped: whoever holds a base from the server must fetch it anew. */
  skips = 0;
  /** Grows with every change; what `useSyncExternalStore` compares. */
  version = 0;
  readonly feed: Feed;
  readonly id: string;
  /** Tells one opening of a run from the next: a base fetched for another store may be older than this one. */
  readonly key = ++openings;
  private names: string[] = [];
  private readonly listeners = new Set<() => void>();
  private readonly eventListeners = new Set<(event: RunEvent) => void>();

  constructor(id: string, afterSeq: number) {
    this.id = id;
    this.feed = new Feed(id, afterSeq, {
      events: (events) => this.apply(events),
      state: (run) => {
        this.run = run;
        this.changed();
      },
      skipped: () => {
        this.skips += 1;
        this.changed();
      },
      connection: (connection) => {
        this.connection = connection;
        this.changed();
      },
    });
  }

  /** The metrics that came, as /series names them; the same list until there are more. */
  metricNames(): string[] {
    const { metrics, validation } = this;
    if (this.names.length !== metrics.columns.size + validation.columns.size)
      this.names = [...metrics.columns.keys(), ...[...validation.columns.keys()].map((key) => `validation/${key}`)];
    return this.names;
  }

  close(): void {
    this.feed.close();
    this.listeners.clear();
    this.eventListeners.clear();
  }

  /** Calls `listener` at most once a frame after changes. */
  readonly subscribe = (listener: () => void): (() => void) => {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  };

  /** Calls `listener` with every event that is no metric and no heartbeat, as it comes. */
  onEvent(listener: (event: RunEvent) => void): () => void {
    this.eventListeners.add(listener);
    return () => this.eventListeners.delete(listener);
  }

  private apply(events: RunEvent[]): void {
    for (const event of events) {
      if (event.type === "metrics") {
        this.metrics.append(event);
        this.progress = null;
      } else if (event.type === "progress") this.progress = event;
      else if (event.type !== "heartbeat") {
        if (event.type === "validation") this.validation.append(event);
        this.others.push(event);
        for (const listener of this.eventListeners) listener(event);
      }
    }
    this.changed();
  }

  private changed(): void {
    this.version += 1;
    onFrame(this.notify);
  }

  private readonly notify = (): void => {
    for (const listener of this.listeners) listener();
  };
}
