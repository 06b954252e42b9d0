// From a pydantic model's JSON Schema to the fields of a form.
import type { SchemaNode } from "../../api/types";

export type FieldKind = "text" | "number" | "integer" | "boolean" | "choice" | "list";

export interface Field {
  name: string;
  label: string;
  help: string;
  kind: FieldKind;
  choices: string[];
  /** Items of a list that are numbers. */
  numeric: boolean;
  nullable: boolean;
  fallback: unknown;
  range: string;
  section: Section;
}

export const SECTIONS = ["Data", "Model", "Optimization", "Evaluation and checkpoints", "Machine"] as const;
export type Section = (typeof SECTIONS)[number];

/** What the page asks for elsewhere, or what the server decides. */
const HIDDEN = new Set(["runs_dir", "name", "resume", "plan", "preset", "debug"]);

const PLACES: [RegExp, Section][] = [
  [
    /^(device|precision|threads|compile|seed|cache_|prune_cache|force_new|report_to|gradient_checkpointing|push_to_hub|model_id|tag$)/,
    "Machine",
  ],
  [
    /^(eval|checkpoint|save|patience|metric_for|sample_|num_beams|log_every|max_nonfinite)/,
    "Evaluation and checkpoints",
  ],
  [/(lr|steps|epochs|batch|accum|decay|warmup|schedule|clip|pack)/, "Optimization"],
  [/(corpus|dataset|column|split|stride|sample|augment|max_length|bad_images|context)/, "Data"],
];

export function fieldsOf(schema: SchemaNode): Field[] {
  return Object.entries(schema.properties ?? {})
    .filter(([name]) => !HIDDEN.has(name))
    .map(([name, node]) => fieldOf(name, node, schema.$defs ?? {}));
}

function fieldOf(name: string, node: SchemaNode, defs: Record<string, SchemaNode>): Field {
  const options = (node.anyOf ?? [node]).map((option) => resolve(option, defs));
  const real = options.filter((option) => option.type !== "null");
  const kinds = real[0] ?? {};
  const items = kinds.items ? resolve(kinds.items, defs) : undefined;
  const choices = real
    .flatMap((option) => option.enum ?? (option.const === undefined ? [] : [option.const]))
    .map(String);
  return {
    name,
    label: labelOf(name),
    help: node.description?.replaceAll("\n", " ") ?? "",
    kind: kindOf(kinds, choices),
    choices: choices.length ? choices : (items?.enum ?? []).map(String),
    numeric: items?.type === "number" || items?.type === "integer",
    nullable: options.length > real.length,
    fallback: node.default,
    range: rangeOf(kinds),
    section: PLACES.find(([pattern]) => pattern.test(name))?.[1] ?? "Model",
  };
}

/** "gradient_accumulation_steps" -> "Gradient accumulation steps", "lora_lr" -> "LoRA LR". */
function labelOf(name: string): string {
  const words = name.split("_").map((word) => SPELLED[word] ?? word);
  const label = words.join(" ");
  return label.charAt(0).toUpperCase() + label.slice(1);
}

const SPELLED: Record<string, string> = {
  lr: "LR",
  lora: "LoRA",
  qkv: "QKV",
  id: "ID",
  val: "validation",
  eval: "evaluation",
  accum: "accumulation",
  freq: "frequency",
  iters: "batches",
  grad: "gradient",
  dir: "folder",
  num: "number of",
};

function resolve(node: SchemaNode, defs: Record<string, SchemaNode>): SchemaNode {
  const target = node.$ref?.split("/").pop();
  return target ? { ...defs[target], ...node } : node;
}

function kindOf(node: SchemaNode, choices: string[]): FieldKind {
  if (choices.length) return "choice";
  if (node.type === "boolean" || node.type === "integer" || node.type === "number") return node.type;
  return node.type === "array" ? "list" : "text";
}

function rangeOf(node: SchemaNode): string {
  const low =
    node.minimum === undefined
      ? node.exclusiveMinimum === undefined
        ? ""
        : `> ${node.exclusiveMinimum}`
      : `≥ ${node.minimum}`;
  const high =
    node.maximum === undefined
      ? node.exclusiveMaximum === undefined
        ? ""
        : `< ${node.exclusiveMaximum}`
      : `≤ ${node.maximum}`;
  return [low, high].filter(Boolean).join(", ");
}

/** 1,000 and 12,345.6, but not 0,001: there the comma is a decimal one, and the server refuses it. */
const GROUPED = /^[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d+)?$/;

/** What a person typed, as JSON; text that is no number stays text, and the server says what is wrong with it. */
export function parse(field: Field, text: string): unknown {
  const trimmed = text.trim();
  if (trimmed === "") return field.nullable ? null : field.kind === "text" ? "" : field.fallback;
  if (field.kind !== "number" && field.kind !== "integer") return trimmed;
  const value = Number((GROUPED.test(trimmed) ? trimmed.replaceAll(",", "") : trimmed).replaceAll("_", ""));
  return Number.isFinite(value) ? value : trimmed;
}

export function same(a: unknown, b: unknown): boolean {
  return JSON.stringify(a ?? null) === JSON.stringify(b ?? null);
}
