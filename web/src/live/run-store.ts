// What the page holds of one run since it was opened: live metrics as columns, the other events as they came.
import type { RunEvent, RunSummary } from "../api/types";
import { Feed, type Connection } from "./feed";
import { onFrame } from "./frame";
import { LiveTable } from "./table";

/** Rows of live metrics above which the charts ask the server for a fresh base, and the rows are let go. */
export const MANY_ROWS = 30_000;

/** How often numbers are shown as they come. A page that draws takes the trainer's processor: once a second is live. */
export const CALM_MS = 1_000;

/** What a summary says beside its numbers. */
const SAYING = ["status", "detail", "actions", "queue_position", "attempt", "resumable"] as const;

let openings = 0;

export class RunStore {
  readonly metrics = new LiveTable();
  readonly validation = new LiveTable();
  /** Events that are no numbers: samples, checkpoints, warnings, notes, acknowledgements ... */
  readonly others: RunEvent[] = [];
  /** How far the preparation of data has come; null once training steps come. */
  progress: RunEvent | null = null;
  connection: Connection = "connecting";
  /** Another run has this one's name: make another store. */
  replaced = false;
  run: RunSummary | null = null;
  /** The summary that was the last to say more than new numbers. */
  standing: RunSummary | null = null;
  /** Grows when events were skipped: whoever holds a base from the server must fetch it anew. */
  skips = 0;
  /** Grows with every change; what `useSyncExternalStore` compares. */
  version = 0;
  readonly feed: Feed;
  readonly id: string;
  /** Tells one opening of a run from the next: a base fetched for another store may be older than this one. */
  readonly key = ++openings;
  private names: string[] = [];
  private told = Number.NEGATIVE_INFINITY;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private readonly listeners = new Set<() => void>();
  private readonly eventListeners = new Set<(event: RunEvent) => void>();

  /** `begun`: the time of the log's first event, where there is one. */
  constructor(id: string, afterSeq: number, begun: number | null) {
    this.id = id;
    this.feed = new Feed(id, afterSeq, begun, {
      events: (events) => this.apply(events),
      state: (run) => {
        const turned = SAYING.some((key) => String(run[key]) !== String(this.standing?.[key]));
        if (turned) this.standing = run;
        this.run = run;
        this.changed(turned);
      },
      skipped: () => {
        this.skips += 1;
        this.changed(true);
      },
      connection: (connection) => {
        this.connection = connection;
        this.changed(true);
      },
      replaced: () => {
        this.replaced = true;
        this.changed(true);
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
    clearTimeout(this.timer);
    this.listeners.clear();
    this.eventListeners.clear();
  }

  /**
   * Calls `listener` after changes: in the next frame when something has happened, and at most every `CALM_MS` when
   * only numbers have come. A page that nobody sees has no frames.
   */
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
    let happened = false;
    for (const event of events) {
      if (event.type === "metrics") {
        this.metrics.append(event);
        this.progress = null;
      } else if (event.type === "progress") this.progress = event;
      else if (event.type !== "heartbeat") {
        if (event.type === "validation") this.validation.append(event);
        else happened = true;
        this.others.push(event);
        for (const listener of this.eventListeners) listener(event);
      }
    }
    this.changed(happened);
  }

  private changed(atOnce: boolean): void {
    this.version += 1;
    const wait = this.told + CALM_MS - performance.now();
    if (atOnce || wait <= 0) onFrame(this.notify);
    else this.timer ??= setTimeout(() => onFrame(this.notify), wait);
  }

  private readonly notify = (): void => {
    clearTimeout(this.timer);
    this.timer = undefined;
    this.told = performance.now();
    for (const listener of this.listeners) listener();
  };
}
