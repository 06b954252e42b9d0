import { useEffect, useRef } from "react";

export type Keys = Record<string, (() => void) | undefined>;

const SEQUENCE_MS = 900;

/** Page-wide keys, such as "p" or "g r" (one after the other). Silent while a person types or a dialog is open. */
export function useKeys(keys: Keys): void {
  const held = useRef(keys);
  useEffect(() => {
    held.current = keys;
  });
  useEffect(() => {
    let before = "";
    let beforeAt = 0;
    const onKey = (event: KeyboardEvent): void => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
      const target = event.target as HTMLElement;
      if (
        target.closest(
          "input:not([type=checkbox]):not([type=radio]), textarea, select, [contenteditable=true], [role=dialog], [role=menu], [role=listbox]",
        )
      )
        return;
      const pair = event.timeStamp - beforeAt < SEQUENCE_MS ? `${before} ${event.key}` : "";
      const action = held.current[pair] ?? held.current[event.key];
      before = event.key;
      beforeAt = event.timeStamp;
      if (!action) return;
      event.preventDefault();
      before = "";
      action();
    };
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, []);
}
