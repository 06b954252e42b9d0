// The shapes of the server's published API (GET /api/openapi.json). Times are Unix seconds.

/** A number as JSON can carry it: what is not finite comes as its name. */
export type Num = number | "NaN" | "Infinity" | "-Infinity";

export type Status = "queued" | "running" | "paused" | "stopping" | "completed" | "stopped" | "failed" | "crashed";
export type Action = "pause" | "resume" | "stop" | "kill" | "checkpoint" | "sample" | "note" | "delete";

export interface Best {
  metric: string;
  value: Num;
  step: number;
  direction?: "min" | "max";
}

export interface RunSummary {
  id: string;
  verb: string;
  kind: "pretrain" | "caption" | null;
  status: Status;
  step: number;
  total_steps: number | null;
  resumable: boolean;
  detail: string;
  actions: Action[];
  queue_position: number | null;
  created: number;
  started: number | null;
  updated: number | null;
  attempt: number;
  seq: number;
  elapsed: number;
  eta: [number, number] | null;
  epoch: number | null;
  epochs: number | null;
  unit: "tokens" | "captions" | null;
  rate: Num | null;
  last: Record<string, unknown>;
  best: Best | null;
  sparkline: (Num | null)[];
  tags: string[];
  note: string;
  pinned: boolean;
  recorded: boolean;
  device: string | null;
}

export interface RunList {
  runs: RunSummary[];
  active: string[];
  /** Folders with runs that cannot be shown, and why. */
  left_out: { name: string; message: string }[];
}

export interface Attempt {
  attempt: number;
  first_seq: number;
  last_seq: number;
  started: number;
  ended: number | null;
  first_step: number;
  last_step: number;
  end: string | null;
}

export interface Pause {
  from: number;
  to: number | null;
  step: number;
}

export interface RunDetail extends RunSummary {
  config: Record<string, unknown>;
  versions: Record<string, string>;
  start: Record<string, unknown> | null;
  command: string | null;
  bytes: number;
  metrics: string[];
  attempts: Attempt[];
  pauses: Pause[];
  counts: Record<string, number>;
  model: boolean;
  /** The last lines of the log, of a run that failed or crashed. */
  log_tail?: string[];
}

export interface RunEvent {
  seq: number;
  attempt: number;
  step: number;
  time: number;
  type: string;
  [field: string]: unknown;
}

export interface SampleEvent extends RunEvent {
  probe?: string;
  prompt?: string;
  image?: string;
  text?: string;
  references?: string[];
  command?: string;
}

export interface RawColumn {
  value: (Num | null)[];
}

export interface BucketColumn {
  first: (Num | null)[];
  last: (Num | null)[];
  min: (number | null)[];
  max: (number | null)[];
  mean: (number | null)[];
  count: number[] | null;
  nonfinite: number[] | null;
}

export interface Segment {
  attempt: number;
  rows: number;
  bucket: number;
  /** Each axis (step, time, seq, and where there are some epoch, tokens or captions) at every bucket's first row. */
  axes: Record<string, number[]>;
  /** The axes at the segment's last row. */
  end: Record<string, number>;
  series: Record<string, RawColumn | BucketColumn>;
}

export interface Table {
  total: number;
  segments: Segment[];
}

export interface Series {
  run: string;
  /** Points from all over a long log that the server has not read yet, not all of them. */
  first_look?: boolean;
  x: string;
  to_seq: number;
  range: [number, number] | null;
  tables: Record<string, Table>;
}

export interface Probe {
  probe: string;
  prompt: string | null;
  image: string | null;
  references: string[];
}

export interface Samples {
  probes: Probe[];
  steps: number[];
  samples: SampleEvent[];
  last_seq: number;
}

export interface Checkpoint {
  name: string;
  step: number;
  time: number;
  bytes: number;
  best: boolean;
  latest: boolean;
  metrics: Record<string, Num>;
  sha256: string | null;
  model: string;
}

export interface Problem {
  field: string;
  message: string;
}

export interface Check {
  valid: boolean;
  problems: Problem[];
  command: string | null;
  argv: string[] | null;
  config: Record<string, unknown> | null;
}

export interface Plan {
  ok: boolean;
  seconds: number;
  text: string;
  plan: Record<string, unknown> | null;
}

export interface Preset {
  verb: string;
  name: string;
  label?: string;
  description?: string;
  config: Record<string, unknown>;
}

export interface CatalogueEntry {
  name: string;
  description: string;
  bytes: number | null;
  available: boolean;
}

export interface ModelEntry {
  id: string;
  kind: "text" | "caption";
  label: string;
  path: string;
  bytes: number;
  parameters: number | null;
  run: string | null;
  step: number | null;
  modified: number;
  loaded: boolean;
  /** Its training captions can choose among its own. */
  consensus: boolean;
}

export interface Models {
  models: ModelEntry[];
  worker: {
    alive: boolean;
    loaded: { id: string; bytes: number }[];
    limit_bytes: number;
    threads: number;
    busy: boolean;
  };
}

export interface Token {
  id: number;
  text: string;
  logprob: Num;
  alternatives?: { id: number; text: string; logprob: Num }[];
}

export interface Health {
  status: string;
  version: string;
  runs_dir?: string;
  models_dir?: string | null;
  demo?: boolean;
  time?: number;
  device?: { name: string; cores: number; memory_bytes: number };
  limits?: { upload_bytes: number; pixels: number };
  allow_urls?: boolean;
}

export interface CaptionBeam {
  text: string;
  score: Num;
  /** "eos", or "length": cut. */
  ending: string;
  tokens: Token[];
}

/** A property of a pydantic model's JSON Schema, as far as the form reads it. */
export interface SchemaNode {
  $ref?: string;
  $defs?: Record<string, SchemaNode>;
  title?: string;
  description?: string;
  type?: string | string[];
  format?: string;
  enum?: unknown[];
  const?: unknown;
  anyOf?: SchemaNode[];
  items?: SchemaNode;
  prefixItems?: SchemaNode[];
  properties?: Record<string, SchemaNode>;
  required?: string[];
  default?: unknown;
  minimum?: number;
  maximum?: number;
  exclusiveMinimum?: number;
  exclusiveMaximum?: number;
  additionalProperties?: boolean | SchemaNode;
}
