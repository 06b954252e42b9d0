import { useCallback } from "react";
import { useSearchParams } from "wouter";

/** The view's settings live in its address, so that every view is a link. */
export function useUrl(): [URLSearchParams, (changes: Record<string, string | null>, push?: boolean) => void] {
  const [params, setParams] = useSearchParams();
  const change = useCallback(
    (changes: Record<string, string | null>, push = false) =>
      setParams(
        (held) => {
          const next = new URLSearchParams(held);
          for (const [name, value] of Object.entries(changes))
            if (value === null) next.delete(name);
            else next.set(name, value);
          return next;
        },
        { replace: !push },
      ),
    [setParams],
  );
  return [params, change];
}

/** A part of the path as it was before `encodeURIComponent`: the router leaves "%2B" and the like as they are. */
export function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // typed by hand, with a % of its own
  }
}
