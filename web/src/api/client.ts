// One way to talk to the server: JSON in, JSON out, refusals as ApiError with the server's own sentence.
import type { Problem } from "./types";

export class ApiError extends Error {
  readonly status: number;
  readonly code: string;
  readonly problems: Problem[];
  readonly flag: string | null;

  constructor(status: number, code: string, message: string, problems: Problem[] = [], flag: string | null = null) {
    super(message);
    this.status = status;
    this.code = code;
    this.problems = problems;
    this.flag = flag;
  }
}

/** Called when the server says that this browser holds no valid token (any more). */
export let onUnauthorized: () => void = () => {};
export function setOnUnauthorized(handler: () => void): void {
  onUnauthorized = handler;
}

export async function request(path: string, init: RequestInit = {}): Promise<Response> {
  let answer: Response;
  try {
    answer = await fetch(path, { credentials: "same-origin", ...init });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new ApiError(0, "unreachable", "The server does not answer. Is `limner serve` still running?");
  }
  if (answer.ok) return answer;
  if (answer.status === 401) onUnauthorized();
  throw await refusal(answer);
}

async function refusal(answer: Response): Promise<ApiError> {
  const text = await answer.text();
  try {
    const { error } = JSON.parse(text);
    const { code, message, problems, flag } = error;
    return new ApiError(answer.status, code, message, problems ?? [], flag ?? null);
  } catch {
    const brief = text.slice(0, 200).trim();
    return new ApiError(answer.status, "unknown", `The server answered ${answer.status}${brief ? `: ${brief}` : "."}`);
  }
}

export async function get<T>(path: string, signal?: AbortSignal): Promise<T> {
  const answer = await request(path, signal ? { signal } : {});
  return (await answer.json()) as T;
}

export async function send<T>(method: string, path: string, body?: unknown, signal?: AbortSignal): Promise<T> {
  const init: RequestInit = { method };
  if (signal) init.signal = signal;
  if (body instanceof FormData) init.body = body;
  else {
    init.body = JSON.stringify(body ?? {});
    init.headers = { "Content-Type": "application/json" };
  }
  const answer = await request(path, init);
  return (answer.status === 204 ? undefined : await answer.json()) as T;
}

/** Reads a streamed answer: one JSON object a line. */
export async function* lines<T>(answer: Response): AsyncGenerator<T> {
  if (!answer.body) return;
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    rest += value ?? "";
    const parts = rest.split("\n");
    rest = parts.pop() ?? "";
    for (const line of parts) if (line.trim()) yield JSON.parse(line) as T;
    if (done) break;
  }
  if (rest.trim()) yield JSON.parse(rest) as T;
}

export const runPath = (id: string): string => `/api/runs/${encodeURIComponent(id)}`;
