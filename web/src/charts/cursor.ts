import { useSyncExternalStore } from "react";

/**
 * The one step cursor of a run. A pointer over a chart moves it while it is there; a click, an arrow key or the
 * samples' slider holds it at a step. Charts follow `x`, samples and captions follow `step`.
 */
export class Cursor {
  /** x under the pointer, on the charts' current axis. */
  hoverX: number | null = null;
  hoverStep: number | null = null;
  /** The step that is held. */
  held: number | null = null;
  private readonly listeners = new Set<() => void>();

  get step(): number | null {
    return this.hoverStep ?? this.held;
  }

  hover(x: number | null, step: number | null): void {
    if (x === this.hoverX) return;
    this.hoverX = x;
    this.hoverStep = step;
    this.tell();
  }

  hold(step: number | null): void {
    if (step === this.held) return;
    this.held = step;
    this.tell();
  }

  readonly subscribe = (listener: () => void): (() => void) => {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  };

  private tell(): void {
    for (const listener of this.listeners) listener();
  }
}

export function useCursorStep(cursor: Cursor): number | null {
  return useSyncExternalStore(cursor.subscribe, () => cursor.step);
}

export function useHeldStep(cursor: Cursor): number | null {
  return useSyncExternalStore(cursor.subscribe, () => cursor.held);
}
