import { expect, test } from "vitest";
import { diffWords } from "./diff";

test("the pieces rebuild both texts, with the fewest changed words", () => {
  const before = "a small red circle above a square";
  const after = "a red circle left of a blue square";
  const pieces = diffWords(before, after);
  const side = (change: string) =>
    pieces
      .filter((piece) => piece.change !== change)
      .map((piece) => piece.text)
      .join(" ");
  expect(side("added")).toBe(before);
  expect(side("removed")).toBe(after);
  expect(pieces.filter((piece) => piece.change === "same").map((piece) => piece.text)).toEqual([
    "a",
    "red circle",
    "a",
    "square",
  ]);
  expect(diffWords("", "x")).toEqual([{ text: "x", change: "added" }]);
  expect(diffWords("x", "x")).toEqual([{ text: "x", change: "same" }]);
});
