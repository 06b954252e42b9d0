import { expect, test } from "vitest";
import { lrScale, peaks, scheduleOf } from "./schedule";

test("the same numbers as the trainer's schedule", () => {
  // limner.training.schedule.lr_scale(step, 100, 10, kind, 0.1) for these steps
  const at = (kind: string) =>
    [0, 9, 10, 55, 80, 99].map((step) => lrScale(step, { kind, floor: 0.1, warmup: 10, total: 100 }));
  const expected = {
    cosine: [0.1, 1, 1, 0.5420582, 0.1974695, 0.1],
    linear: [0.1, 1, 1, 0.5449438, 0.2921348, 0.1],
    wsd: [0.1, 1, 1, 1, 0.5803371, 0.1],
    constant: [0.1, 1, 1, 1, 1, 1],
  };
  for (const [kind, values] of Object.entries(expected))
    at(kind).forEach((value, index) => expect(value).toBeCloseTo(values[index] as number, 6));
});

test("rates in use, and a warm-up of at most a tenth", () => {
  expect(peaks({ lr: 3e-4, lr_floor: 0.1 })).toEqual([{ name: "all", rate: 3e-4 }]);
  expect(peaks({ projection_lr: 1e-3, lora_lr: 5e-5, vision_lr: 1e-5, lora: false }).map((peak) => peak.name)).toEqual([
    "projection",
  ]);
  expect(scheduleOf({ warmup_steps: 500, max_steps: 200 }, null)).toMatchObject({
    warmup: 20,
    total: 200,
    known: true,
  });
  expect(scheduleOf({ warmup_steps: 50 }, null)).toMatchObject({ known: false });
});
