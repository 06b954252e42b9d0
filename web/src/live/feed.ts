// One run's socket: it delivers every event after `afterSeq` once, in order, through any number of cuts.
import type { RunEvent, RunSummary } from "../api/types";

export type Connection = "connecting" | "live" | "reconnecting" | "gone" | "unauthorized";

type Message =
  | { type: "hello"; last_seq: number; begun: number | null; status: string }
  | { type: "events"; from: number; to: number; events: RunEvent[] }
  | { type: "snapshot"; after_seq: number; to: number; run: RunSummary }
  | { type: "state"; run: RunSummary }
  | { type: "resync"; last_seq: number }
  | { type: "ping" }
  | { type: "error"; message: string };

export interface FeedHandlers {
  events(events: RunEvent[]): void;
  state(run: RunSummary): void;
  /** Events up to `to` will not come: ask for what they said by HTTP. */
  skipped(to: number): void;
  connection(connection: Connection): void;
  /** Another run has this one's name: nothing that is held is of it, and nothing more comes from here. */
  replaced(): void;
}

const SILENCE_MS = 25_000; // the server pings every 10 s
const FIRST_RETRY_MS = 200;
const LAST_RETRY_MS = 5_000;
/** A run that is gone may come back, or another one of its name. */
const GONE_RETRY_MS = 3_000;

export class Feed {
  /** Every seq up to this one has been delivered or skipped. */
  lastSeq: number;
  /** What was delivered: closed ranges of seq, how many those are, and how many came twice. */
  readonly held = { ranges: [] as [number, number][], count: 0, duplicates: 0 };
  cuts = 0;
  private socket: WebSocket | null = null;
  private retryMs = FIRST_RETRY_MS;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private watchdog: ReturnType<typeof setTimeout> | undefined;
  private closed = false;
  private readonly url: string;
  private readonly handlers: FeedHandlers;
  /** The time of the log's first event, which tells it from another of the same name; null: it has none yet. */
  private begun: number | null;

  constructor(run: string, afterSeq: number, begun: number | null, handlers: FeedHandlers) {
    this.lastSeq = afterSeq;
    this.begun = begun;
    this.handlers = handlers;
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    this.url = `${scheme}://${location.host}/ws/runs/${encodeURIComponent(run)}`;
    addEventListener("online", this.hurry);
    document.addEventListener("visibilitychange", this.hurry);
    handlers.connection("connecting");
    this.open();
  }

  close(): void {
    this.closed = true;
    clearTimeout(this.timer);
    clearTimeout(this.watchdog);
    removeEventListener("online", this.hurry);
    document.removeEventListener("visibilitychange", this.hurry);
    const socket = this.socket;
    this.socket = null; // what it still says counts for nothing
    socket?.close();
  }

  private open(): void {
    const socket = new WebSocket(this.url);
    this.socket = socket;
    socket.onopen = () => this.subscribe();
    socket.onmessage = (message) => {
      if (socket !== this.socket) return; // the last words of a socket already given up
      this.watch();
      this.take(JSON.parse(message.data as string) as Message);
    };
    socket.onclose = ({ code }) => {
      if (socket === this.socket) this.lost(code);
    };
    this.watch();
  }

  private subscribe(): void {
    this.socket?.send(JSON.stringify({ type: "subscribe", after_seq: this.lastSeq }));
  }

  private take(message: Message): void {
    switch (message.type) {
      case "hello":
        if (message.last_seq < this.lastSeq || (this.begun !== null && message.begun !== this.begun)) {
          this.close();
          return this.handlers.replaced();
        }
        this.begun = message.begun;
        this.retryMs = FIRST_RETRY_MS;
        this.handlers.connection("live");
        break;
      case "events":
        this.deliver(message.events);
        break;
      case "snapshot":
        this.lastSeq = message.to;
        this.handlers.skipped(message.to);
        this.handlers.state(message.run);
        break;
      case "state":
        this.handlers.state(message.run);
        break;
      case "resync":
        this.subscribe();
        break;
      case "ping":
        this.socket?.send('{"type":"pong"}');
        break;
      case "error":
        console.warn(`limner: the server refused a message: ${message.message}`);
    }
  }

  private deliver(events: RunEvent[]): void {
    const fresh: RunEvent[] = [];
    for (const event of events) {
      if (event.seq <= this.lastSeq) {
        this.held.duplicates += 1;
        continue;
      }
      if (event.seq !== this.lastSeq + 1) {
        this.subscribe(); // a hole: ask again from the last one held
        break;
      }
      if (event.seq === 1) this.begun = event.time;
      const last = this.held.ranges.at(-1);
      if (last?.[1] === this.lastSeq) last[1] = event.seq;
      else this.held.ranges.push([event.seq, event.seq]);
      this.held.count += 1;
      this.lastSeq = event.seq;
      fresh.push(event);
    }
    if (fresh.length) this.handlers.events(fresh);
  }

  private lost(code: number): void {
    clearTimeout(this.watchdog);
    this.socket = null;
    if (this.closed) return;
    this.cuts += 1;
    if (code === 4401 || code === 4403) return this.handlers.connection("unauthorized");
    const gone = code === 4404;
    this.handlers.connection(gone ? "gone" : "reconnecting");
    this.timer = setTimeout(() => this.open(), gone ? GONE_RETRY_MS : this.retryMs * (0.75 + Math.random() / 2));
    this.retryMs = Math.min(this.retryMs * 2, LAST_RETRY_MS);
  }

  /** A socket that says nothing, not even a ping, is dead even when the browser has not noticed. */
  private watch(): void {
    clearTimeout(this.watchdog);
    this.watchdog = setTimeout(() => {
      const socket = this.socket;
      this.lost(1006);
      socket?.close();
    }, SILENCE_MS);
  }

  private readonly hurry = (): void => {
    if (this.closed || this.socket || document.hidden) return;
    clearTimeout(this.timer);
    this.open();
  };
}
