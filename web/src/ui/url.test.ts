import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { decoded, getText, putText } from "./url";

let kept: Record<string, string>;

beforeEach(() => {
  kept = {};
  vi.stubGlobal("sessionStorage", {
    getItem: (name: string) => kept[name] ?? null,
    setItem: (name: string, text: string) => {
      if (text.length > 1_000_000) throw new Error("QuotaExceededError");
      kept[name] = text;
    },
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
  kept = {};
  expect(through("x".repeat(1_000_001))).toEqual(["prompt.kept=*", null]); // another tab, or no room
});

test("a part of a path is what it was before it was encoded", () => {
  expect([decoded("lr%2B2"), decoded("été"), decoded("50%")]).toEqual(["lr+2", "été", "50%"]);
});
