import { useSyncExternalStore } from "react";
import { ApiError } from "../api/client";

interface Toast {
  id: number;
  text: string;
  bad: boolean;
}

let toasts: Toast[] = [];
let nextId = 1;
const listeners = new Set<() => void>();

function change(next: Toast[]): void {
  toasts = next;
  for (const listener of listeners) listener();
}

function close(id: number): void {
  change(toasts.filter((toast) => toast.id !== id));
}

export function say(text: string, bad = false): void {
  const id = nextId++;
  change([...toasts.filter((toast) => toast.text !== text), { id, text, bad }].slice(-4));
  setTimeout(() => close(id), bad ? 10_000 : 4_000);
}

/** The server's refusal in its own words, with the flag that mends it where they do not name it. */
export function wordsOfError(error: unknown): string {
  const message = error instanceof Error ? error.message : String(error);
  const flag = error instanceof ApiError ? error.flag : null;
  return flag && !message.includes(flag) ? `${message} (${flag})` : message;
}

export function sayError(error: unknown): void {
  say(wordsOfError(error), true);
}

export function copyCommand(command: string | null | undefined): void {
  void navigator.clipboard.writeText(command ?? "").then(() => say("Command copied."), sayError);
}

export function Toasts() {
  const shown = useSyncExternalStore(
    (listener) => {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    () => toasts,
  );
  return (
    <div className="toasts" role="status" aria-live="polite">
      {shown.map(({ id, text, bad }) => (
        <div key={id} className={bad ? "toast bad" : "toast"}>
          <span>{text}</span>
          <button type="button" aria-label="Dismiss" onClick={() => close(id)}>
            ×
          </button>
        </div>
      ))}
    </div>
  );
}
