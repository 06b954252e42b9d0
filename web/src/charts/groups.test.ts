import { expect, test } from "vitest";
import { chartsFor, lossKind } from "./groups";

const NAMES = ["loss", "validation/eval_loss", "learning_rate"];

const drawn = (...kinds: ("likelihood" | "objective")[]) =>
  chartsFor(NAMES, kinds)
    .filter(({ id }) => id !== "rates")
    .map(({ id, unit, lines }) => [id, unit, lines.map(({ table, of }) => of ?? table)]);

test("a training loss that is no likelihood has a chart of its own, without a unit and a perplexity", () => {
  const [unit, both] = ["nats per token", ["likelihood", "validation"]];
  expect(drawn("likelihood")).toEqual([
    ["loss", unit, both],
    ["perplexity", "", both],
  ]);
  expect(drawn("objective")).toEqual([
    ["loss", unit, ["validation"]],
    ["objective", "", ["objective"]],
    ["perplexity", "", ["validation"]],
  ]);
  expect(drawn("likelihood", "objective", "likelihood")).toEqual([
    ["loss", unit, both],
    ["objective", "", ["objective"]],
    ["perplexity", "", both],
  ]);
});

test("what the training loss is, by the run's settings and by what it logs", () => {
  const kind = (config: object, metrics = NAMES) => lossKind({ config, metrics } as never);
  expect([kind({}), kind({ objective: "likelihood" }), kind({ help_weight: 0 })]).toEqual(Array(3).fill("likelihood"));
  expect([kind({ objective: "cider" }), kind({ help_weight: 1 })]).toEqual(["objective", "objective"]);
  expect(kind({ help_weight: 1 }, [...NAMES, "help_loss"])).toBe("likelihood");
});
