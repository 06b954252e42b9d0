import { expect, test } from "vitest";
import { fieldsOf, parse, same } from "./fields";

const schema = {
  properties: {
    runs_dir: { type: "string", default: "runs" },
    lr: { type: "number", default: 3e-4, exclusiveMinimum: 0, description: "Peak\nlearning rate." },
    steps: { anyOf: [{ type: "integer", minimum: 1 }, { type: "null" }], default: null },
    device: { enum: ["auto", "cpu"], default: "auto", type: "string" },
    compile: { anyOf: [{ type: "boolean" }, { type: "null" }], default: null },
    dataset: { type: "array", items: { type: "string" }, default: [] },
    report_to: { type: "array", items: { type: "string", enum: ["wandb"] }, default: [] },
    mode: { $ref: "#/$defs/Mode" },
  },
  $defs: { Mode: { enum: ["a", "b"] } },
};

test("every kind of field is found, with its meaning, limits and place", () => {
  const fields = Object.fromEntries(fieldsOf(schema).map((field) => [field.name, field]));
  expect(Object.keys(fields)).toEqual(["lr", "steps", "device", "compile", "dataset", "report_to", "mode"]);
  expect(fields.lr).toMatchObject({
    kind: "number",
    help: "Peak learning rate.",
    range: "> 0",
    section: "Optimization",
    nullable: false,
  });
  expect(fields.steps).toMatchObject({ kind: "integer", nullable: true, range: "≥ 1" });
  expect(fields.device).toMatchObject({ kind: "choice", choices: ["auto", "cpu"], section: "Machine" });
  expect(fields.compile).toMatchObject({ kind: "boolean", nullable: true });
  expect(fields.dataset).toMatchObject({ kind: "list", choices: [], section: "Data" });
  expect(fields.report_to).toMatchObject({ kind: "list", choices: ["wandb"] });
  expect(fields.mode).toMatchObject({ kind: "choice", choices: ["a", "b"], section: "Model" });
});

test("numbers are read as people write them", () => {
  const [lr, steps] = fieldsOf(schema) as [never, never];
  expect([parse(lr, "5e-5"), parse(lr, "1,000"), parse(lr, ""), parse(steps, ""), parse(lr, "fast")]).toEqual([
    5e-5,
    1000,
    3e-4,
    null,
    "fast",
  ]);
  for (const text of ["0,001", "0,0001", "1,5", "1,00", "1,000,5", "1.000,5", "1e400"]) expect(parse(lr, text)).toBe(text);
  expect([parse(lr, "12,345.5"), parse(lr, "-1,234,567"), parse(steps, "2_000")]).toEqual([12345.5, -1234567, 2000]);
  expect([same(null, undefined), same([1], [1]), same(1, 2)]).toEqual([true, true, false]);
});
