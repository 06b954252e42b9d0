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

test("what the training loss is: as the run says, else by its settings", () => {
  const kind = (config: object, start: object | null = {}) => lossKind({ config, start } as never);
  expect([kind({}), kind({}, null), kind({ objective: "likelihood" }), kind({ help_weight: 0 })]).toEqual(
    Array(4).fill("likelihood"),
  );
  expect([kind({ objective: "cider" }), kind({ help_weight: 1 }), kind({}, { loss_is: "reward" })]).toEqual(
    Array(3).fill("objective"),
  );
  expect(kind({ help_weight: 1 }, { loss_is: "likelihood" })).toBe("likelihood");
});
