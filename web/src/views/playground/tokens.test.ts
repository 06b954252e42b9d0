import { expect, test } from "vitest";
import { wordsOf } from "./tokens";

test("a word is as sure as its least sure token", () => {
  const token = (text: string, p: number) => ({ id: 0, text, logprob: Math.log(p) });
  const words = wordsOf([token("a", 0.9), token(" tri", 0.8), token("angle", 0.5), token("", 0.1), token(" red", 1)]);
  expect(words.map(({ text }) => text)).toEqual(["a", "triangle", "red"]);
  words.forEach(({ probability }, index) => expect(probability).toBeCloseTo([0.9, 0.5, 1][index] as number, 12));
});
