import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { Feed, type Connection } from "./feed";

class FakeSocket {
  static made: FakeSocket[] = [];
  sent: { type: string; after_seq?: number }[] = [];
  onopen = (): void => {};
  onmessage: (message: { data: string }) => void = () => {};
  onclose: (closing: { code: number }) => void = () => {};
  readonly url: string;
  constructor(url: string) {
    this.url = url;
    FakeSocket.made.push(this);
  }
  send(text: string): void {
    this.sent.push(JSON.parse(text));
  }
  close(): void {}
  say(message: object): void {
    this.onmessage({ data: JSON.stringify(message) });
  }
  events(from: number, to: number): void {
    const events = Array.from({ length: to - from + 1 }, (_, i) => ({
      seq: from + i,
      attempt: 1,
      step: 0,
      time: 0,
      type: "note",
    }));
    this.say({ type: "events", from, to, events });
  }
}

const seen: number[] = [];
const connections: Connection[] = [];
let skipped = 0;
let replaced = 0;

function feed(after: number, begun: number | null = null): Feed {
  return new Feed("r", after, begun, {
    events: (events) => seen.push(...events.map((event) => event.seq)),
    state: () => {},
    skipped: (to) => (skipped = to),
    connection: (connection) => connections.push(connection),
    replaced: () => (replaced += 1),
  });
}

const newest = (): FakeSocket => FakeSocket.made.at(-1) as FakeSocket;

beforeEach(() => {
  vi.useFakeTimers();
  vi.stubGlobal("WebSocket", FakeSocket);
  vi.stubGlobal("location", { protocol: "http:", host: "here" });
  vi.stubGlobal("document", { hidden: false, addEventListener: () => {}, removeEventListener: () => {} });
  vi.stubGlobal("addEventListener", () => {});
  vi.stubGlobal("removeEventListener", () => {});
  FakeSocket.made = [];
  seen.length = connections.length = skipped = replaced = 0;
});
afterEach(() => {
  vi.unstubAllGlobals();
  vi.useRealTimers();
});

test("every event once: duplicates are dropped, a hole is asked for again", () => {
  const { held } = feed(10);
  const socket = newest();
  socket.onopen();
  expect(socket.sent).toEqual([{ type: "subscribe", after_seq: 10 }]);
  socket.events(11, 13);
  socket.events(12, 14);
  socket.events(17, 18); // 15 and 16 are missing
  expect(socket.sent.at(-1)).toEqual({ type: "subscribe", after_seq: 14 });
  socket.events(15, 18);
  expect(seen).toEqual([11, 12, 13, 14, 15, 16, 17, 18]);
  socket.say({ type: "snapshot", after_seq: 18, to: 90, run: {} });
  socket.events(91, 92);
  expect(held).toEqual({ ranges: [[11, 18], [91, 92]], count: 10, duplicates: 2 });
});

test("after a cut it goes on from the last event held, and waits longer each time nobody answers", () => {
  feed(0);
  newest().onopen();
  newest().say({ type: "hello", last_seq: 2, begun: 0, status: "running" });
  newest().events(1, 2);
  for (const wait of [250, 500, 1000]) {
    newest().onclose({ code: 1006 });
    const count = FakeSocket.made.length;
    vi.advanceTimersByTime(wait / 2 - 1);
    expect(FakeSocket.made.length).toBe(count);
    vi.advanceTimersByTime(wait);
    expect(FakeSocket.made.length).toBe(count + 1);
  }
  newest().onopen();
  expect(newest().sent).toEqual([{ type: "subscribe", after_seq: 2 }]);
  expect(connections).toEqual(["connecting", "live", "reconnecting", "reconnecting", "reconnecting"]);
});

test("the words of a socket that was given up count for nothing; silence gives one up", () => {
  feed(0);
  const old = newest();
  old.onopen();
  old.events(1, 1);
  vi.advanceTimersByTime(25_001); // not even a ping
  vi.advanceTimersByTime(1_000);
  expect(FakeSocket.made.length).toBe(2);
  old.events(2, 3);
  newest().onopen();
  newest().events(2, 2);
  expect(seen).toEqual([1, 2]);
});

test("resync, snapshot and ping are answered; a run that is gone is looked for every few seconds", () => {
  feed(5);
  const socket = newest();
  socket.onopen();
  socket.say({ type: "resync", last_seq: 90 });
  expect(socket.sent.at(-1)).toEqual({ type: "subscribe", after_seq: 5 });
  socket.say({ type: "snapshot", after_seq: 5, to: 90, run: {} });
  expect(skipped).toBe(90);
  socket.events(91, 92);
  expect(seen).toEqual([91, 92]);
  socket.say({ type: "ping" });
  expect(socket.sent.at(-1)).toEqual({ type: "pong" });
  socket.onclose({ code: 4404 });
  expect(connections.at(-1)).toBe("gone");
  for (const made of [2, 3]) {
    vi.advanceTimersByTime(3_000);
    expect(FakeSocket.made.length).toBe(made);
    newest().onclose({ code: 4404 });
  }
  vi.advanceTimersByTime(3_000);
  newest().onopen();
  expect(newest().sent).toEqual([{ type: "subscribe", after_seq: 92 }]);
  newest().say({ type: "hello", last_seq: 92, begun: 0, status: "completed" });
  expect([connections.at(-1), replaced]).toEqual(["live", 0]);
});

test("another log of the same name is told, whether shorter or longer, and none of it is taken for this one's", () => {
  for (const [after, begun, hello] of [
    [5, 100, { last_seq: 9, begun: 200 }],
    [5, 100, { last_seq: 0, begun: null }],
    [5, null, { last_seq: 4, begun: 200 }],
    [5, 100, { last_seq: 5, begun: 100 }], // the same
    [0, null, { last_seq: 9, begun: 200 }], // a run that had not begun
  ] as const) {
    feed(after, begun);
    newest().onopen();
    newest().say({ type: "hello", status: "running", ...hello });
  }
  expect([replaced, connections.filter((connection) => connection === "live").length]).toEqual([3, 2]);

  feed(0);
  newest().onopen();
  newest().say({ type: "hello", status: "queued", last_seq: 0, begun: null });
  newest().events(1, 2); // its first event has the time 0
  newest().say({ type: "resync", last_seq: 7 });
  newest().say({ type: "hello", status: "running", last_seq: 7, begun: 300 });
  newest().events(3, 7);
  expect([replaced, seen]).toEqual([4, [1, 2]]);
});
