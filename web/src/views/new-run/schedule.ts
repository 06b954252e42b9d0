// The learning rate over a run, as limner.training.schedule computes it.

/** The share of a run, at its end, in which "wsd" goes down. */
const DECAY = 0.4;

export interface Schedule {
  kind: string;
  floor: number;
  warmup: number;
  total: number;
}

/** The factor on every group's peak rate for optimizer step `step`, counted from 0. */
export function lrScale(step: number, { kind, floor, warmup, total }: Schedule): number {
  if (step < warmup) return (step + 1) / warmup;
  const progress = Math.min(1, (step - warmup) / Math.max(1, total - 1 - warmup));
  if (kind === "linear") return 1 - (1 - floor) * progress;
  if (kind === "cosine") return floor + (1 - floor) * 0.5 * (1 + Math.cos(Math.PI * progress));
  if (kind === "wsd") return floor + (1 - floor) * Math.min(1, (1 - progress) / DECAY);
  return 1;
}

/** The peak rates among a verb's settings that are in use. */
export function peaks(config: Record<string, unknown>): { name: string; rate: number }[] {
  const idle = new Set<string>();
  if (config.lora === false) idle.add("lora");
  if (config.freeze_vision !== false && !config.unfreeze_vision_layers) idle.add("vision");
  return Object.entries(config).flatMap(([name, value]) => {
    const group = name.match(/^(?:(.+)_)?lr$/);
    if (!group || typeof value !== "number" || idle.has(group[1] ?? "")) return [];
    return [{ name: (group[1] ?? "all").replaceAll("_", " "), rate: value }];
  });
}

export function scheduleOf(config: Record<string, unknown>, planned: number | null): Schedule & { known: boolean } {
  const asked = [planned, config.max_steps, config.steps].find((value): value is number => typeof value === "number");
  const total = asked ?? 1000;
  const warmup = Math.min(Number(config.warmup_steps ?? 0), Math.floor(total / 10));
  return {
    kind: String(config.schedule ?? "cosine"),
    floor: Number(config.lr_floor ?? 0),
    warmup,
    total,
    known: asked !== undefined,
  };
}
