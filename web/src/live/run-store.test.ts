import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { CALM_MS, RunStore } from "./run-store";

class FakeSocket {
  onopen = (): void => {};
  onmessage: (message: { data: string }) => void = () => {};
  onclose = (): void => {};
  send(): void {}
  close(): void {}
}

let socket: FakeSocket;
let seq = 0;

function say(type: string, fields: object = {}): void {
  seq += 1;
  const event = { seq, attempt: 1, step: seq, time: 0, type, ...fields };
  socket.onmessage({ data: JSON.stringify({ type: "events", from: seq, to: seq, events: [event] }) });
}

beforeEach(() => {
  vi.useFakeTimers();
  vi.stubGlobal("WebSocket", function () {
    return (socket = new FakeSocket());
  });
  vi.stubGlobal("location", { protocol: "http:", host: "here" });
  vi.stubGlobal("document", { hidden: false, addEventListener: () => {}, removeEventListener: () => {} });
  vi.stubGlobal("addEventListener", () => {});
  vi.stubGlobal("removeEventListener", () => {});
  vi.stubGlobal("requestAnimationFrame", (draw: () => void) => setTimeout(draw, 16));
});
afterEach(() => {
  vi.unstubAllGlobals();
  vi.useRealTimers();
});

test("numbers are told once a second, none is lost; what happens is told in the next frame", () => {
  const store = new RunStore("r", 0, null);
  const told: number[] = [];
  store.subscribe(() => told.push(store.metrics.rows));
  say("metrics", { loss: 1 });
  vi.advanceTimersByTime(16);
  expect(told).toEqual([1]);
  for (let k = 0; k < 50; k++) {
    vi.advanceTimersByTime(20);
    say("metrics", { loss: k });
  }
  vi.advanceTimersByTime(CALM_MS + 16); // the last number, too, is shown within that time
  expect(told.length).toBeLessThanOrEqual(3);
  expect(told.at(-1)).toBe(51);
  const before = told.length;
  say("metrics", { loss: 0 });
  say("checkpoint");
  vi.advanceTimersByTime(16);
  expect(told.slice(before)).toEqual([52]);
  vi.advanceTimersByTime(2 * CALM_MS);
  expect(told.length).toBe(before + 1);
  store.close();
});

test("a summary with new numbers waits as they do; another state does not", () => {
  const store = new RunStore("r", 0, null);
  const state = (fields: object): void =>
    socket.onmessage({ data: JSON.stringify({ type: "state", run: { detail: "", actions: [], ...fields } }) });
  state({ status: "running", step: 1 });
  vi.advanceTimersByTime(16);
  let told = 0;
  store.subscribe(() => (told += 1));
  state({ status: "running", step: 2 });
  vi.advanceTimersByTime(100);
  expect([told, store.run?.step, store.standing?.step]).toEqual([0, 2, 1]);
  state({ status: "paused", step: 2 });
  vi.advanceTimersByTime(16);
  expect([told, store.standing?.status]).toEqual([1, "paused"]);
  store.close();
});
