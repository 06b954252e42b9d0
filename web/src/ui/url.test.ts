import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { decoded, getText, isElsewhere, putText } from "./url";

let kept: Record<string, string>;

beforeEach(() => {
  kept = {};
  vi.stubGlobal("sessionStorage", {
    getItem: (name: string) => kept[name] ?? null,
    setItem: (name: string, text: string) => {
      if (text.length > 1_000_000) throw new Error("QuotaExceededError");
      kept[name] = text;
    },
    removeItem: (name: string) => delete kept[name],
  });
});
afterEach(() => void vi.unstubAllGlobals());

/** The address after a text was put into it, and the text that is read from it. */
function through(text: string | null, before = ""): [string, string | null] {
  const url = new URLSearchParams(before);
  for (const [name, value] of Object.entries(putText("prompt", text)))
    if (value === null) url.delete(name);
    else url.set(name, value);
  return [url.toString().replace(/=[\d.]+$/, "=*"), getText(url, "prompt")];
}

test("a short text is in the address, a long one in the tab, and either comes back", () => {
  const long = "Once upon a time ".repeat(6_000);
  expect(through("Once")).toEqual(["prompt=Once", "Once"]);
  expect(through(long, "prompt=Once")).toEqual(["prompt.kept=*", long]);
  expect(through("Once", "prompt.kept=1")).toEqual(["prompt=Once", "Once"]);
  expect(through(null, "prompt.kept=1")).toEqual(["", null]);
  expect(putText("prompt", long)).not.toEqual(putText("prompt", long)); // a page that follows its address sees each
});

test("a text that the browser has no room for, or keeps nothing of, lives as long as the page", async () => {
  const [long, longer] = ["x".repeat(3_000), "x".repeat(1_000_001)];
  expect(through(long)).toEqual(["prompt.kept=*", long]);
  expect(through(longer)).toEqual(["prompt.kept=*", longer]);
  expect(kept).toEqual({}); // not the older one: it would come back after a reload
  vi.stubGlobal("sessionStorage", undefined); // as where a person forbids it: reading it throws
  expect(through(long)).toEqual(["prompt.kept=*", long]);
  const url = new URLSearchParams("prompt.kept=1");
  expect(isElsewhere(url, "prompt")).toBe(false);
  vi.resetModules();
  const reloaded = await import("./url");
  expect([reloaded.getText(url, "prompt"), reloaded.isElsewhere(url, "prompt")]).toEqual([null, true]);
  expect(reloaded.isElsewhere(new URLSearchParams("prompt=Once"), "prompt")).toBe(false);
});

test("a part of a path is what it was before it was encoded", () => {
  expect([decoded("lr%2B2"), decoded("été"), decoded("50%")]).toEqual(["lr+2", "été", "50%"]);
});
