import { expect, test } from "vitest";
import { overwritten } from "./overwritten";

test("a line that is written anew stands once, in whatever pieces it comes", () => {
  const log = "begin\r\n 10 %\r 20 %\rdone\nend\n\r1 of 2\r2 of 2";
  const shown = "begin\ndone\nend\n2 of 2";
  expect(overwritten(log)).toBe(shown);
  for (let cut = 0; cut <= log.length; cut++)
    expect(overwritten(overwritten(log.slice(0, cut)) + log.slice(cut))).toBe(shown);
  expect(["part one", " part two\n"].reduce((held, next) => overwritten(held + next), "")).toBe("part one part two\n");
});
