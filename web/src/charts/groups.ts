// Which charts a run has: named ones in a fixed order, then one for every metric that nobody foresaw.
import type { RunDetail } from "../api/types";
import { metricName } from "../format";
import type { LineKey } from "./book";

export interface ChartLine extends LineKey {
  label: string;
  color: string;
  dots?: boolean;
  /** Drawn only of runs whose training loss is of this kind. */
  of?: LossKind;
}

/** A likelihood has a unit and a perplexity, and compares with the validation loss; another objective does not. */
export type LossKind = "likelihood" | "objective";

/** What a run's training loss is. Help that only training sees is logged as a `help_loss`; older runs added it in. */
export function lossKind({ config, metrics }: Pick<RunDetail, "config" | "metrics">): LossKind {
  const helped = Number(config.help_weight ?? 0) > 0 && !metrics.includes("help_loss");
  return helped || (config.objective ?? "likelihood") !== "likelihood" ? "objective" : "likelihood";
}

export interface ChartSpec {
  id: string;
  title: string;
  unit: string;
  lines: ChartLine[];
  /** Draw the raw points as a shadow behind the smoothed line. */
  smoothed: boolean;
  stacked?: boolean;
  references?: boolean;
  /** Logarithmic until a person says otherwise. */
  log?: boolean;
  /** The axis begins at zero: a change is seen as large as it is. */
  zero?: boolean;
}

/** Names of CSS variables, of as many lines as can be told apart. */
export const COLORS = ["--c1", "--c2", "--c3", "--c4", "--c5", "--c6", "--c7", "--c8"];

/** Counters and the like: shown elsewhere, or of no interest as a curve. */
const NO_CHART = /^(epoch|tokens|captions|eta_seconds|validation\/seconds)$/;

/**
 * The charts for these metrics (names as /series knows them: validation metrics begin with "validation/") of runs
 * with training losses of these kinds.
 */
export function chartsFor(names: Iterable<string>, kinds: Iterable<LossKind> = ["likelihood"]): ChartSpec[] {
  const left = new Set([...names].filter((name) => !NO_CHART.test(name)));
  const take = (pattern: RegExp): string[] => {
    const found = [...left].filter((name) => pattern.test(name)).sort();
    for (const name of found) left.delete(name);
    return found;
  };
  const loss = take(/^(loss|validation\/(eval_)?loss)$/);
  if (loss.length) take(/^(validation\/)?perplexity$/); // drawn from the loss, of which it says no more
  const drawn = new Set(kinds);
  const likelihoods = loss.filter((name) => name !== "loss" || drawn.has("likelihood"));
  const objectives = loss.filter((name) => name === "loss" && drawn.has("objective"));
  const charts: (ChartSpec | null)[] = [
    spec("loss", "Loss", "nats per token", likelihoods, { smoothed: true, references: true }),
    spec("objective", "Training objective", "", objectives, { smoothed: true }),
    spec("perplexity", "Perplexity", "", likelihoods, { smoothed: true, log: true, transform: "exp" }),
    spec("bits", "Bits per byte", "", take(/^(validation\/)?bits_per_byte$/), { smoothed: true }),
    learningRate(take(/^learning_rates?(\.|$)/)),
    spec("gradient", "Gradient norm", "", take(/^gradient_norm/), { smoothed: true }),
    spec("rate", "Throughput", "per second", take(/_per_second$/), { smoothed: true, zero: true }),
    spec("time", "Time of a step", "seconds", take(/^seconds\./), { smoothed: false, stacked: true }),
    spec("memory", "Memory", "MB", take(/memory|gpu_.*mb$/), { smoothed: false, zero: true }),
    spec("mfu", "Share of the machine's peak", "", take(/^mfu$/), { smoothed: true, zero: true }),
  ];
  for (const name of [...left].sort())
    charts.push(spec(name, metricName(name), "", [name], { smoothed: !name.startsWith("validation/") }));
  return charts.filter((chart) => chart !== null);
}

function spec(
  id: string,
  title: string,
  unit: string,
  names: string[],
  options: Omit<ChartSpec, "id" | "title" | "unit" | "lines"> & { transform?: "exp" },
): ChartSpec | null {
  if (!names.length) return null;
  const { transform, ...rest } = options;
  const lines = names.map((name, index): ChartLine => {
    const validation = name.startsWith("validation/");
    return {
      table: validation ? "validation" : "metrics",
      key: validation ? name.slice("validation/".length) : name,
      label: label(id, name),
      color: COLORS[index % COLORS.length] as string,
      dots: validation,
      ...(transform ? { transform } : {}),
      ...(name === "loss" ? { of: id === "objective" ? "objective" : "likelihood" } : {}),
    };
  });
  return { id, title: title.charAt(0).toUpperCase() + title.slice(1), unit, lines, ...rest };
}

function label(chart: string, name: string): string {
  if (chart === "loss" || chart === "perplexity" || chart === "bits")
    return name.startsWith("validation/") ? "validation" : "training";
  if (chart === "rate") return name.replace(/_per_second$/, "/s");
  if (chart === "time") return name.split(".").slice(1).join(" ");
  if (chart === "memory")
    return name
      .replace(/_mb$/, "")
      .replace(/^memory$/, "process")
      .replace("gpu_memory", "GPU")
      .replaceAll("_", " ");
  if (chart === "rates") return name.split(".").slice(1).join(" ") || "learning rate";
  return metricName(name);
}

/** Groups with their own rates are told apart; a single group says no more than the one learning rate. */
function learningRate(names: string[]): ChartSpec | null {
  const groups = names.filter((name) => name.includes("."));
  return spec("rates", "Learning rate", "", groups.length > 1 ? groups : names.filter((name) => !name.includes(".")), {
    smoothed: false,
  });
}
