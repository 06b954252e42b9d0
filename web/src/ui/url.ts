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

/** Characters of a text that go into an address; servers refuse much longer ones. */
const LONGEST = 2_000;
let puts = 0;

/** What `putText` put there. */
export function getText(url: URLSearchParams, name: string): string | null {
  return url.has(`${name}.kept`) ? sessionStorage.getItem(`limner.${name}`) : url.get(name);
}

/** The change of the address that holds a text; one that is too long is kept in this tab instead, for a reload. */
export function putText(name: string, text: string | null): Record<string, string | null> {
  if (text === null || text.length <= LONGEST) return { [name]: text, [`${name}.kept`]: null };
  try {
    sessionStorage.setItem(`limner.${name}`, text);
  } catch {
    // there is no room: it is on the page, but will not outlive a reload
  }
  return { [name]: null, [`${name}.kept`]: `${Date.now()}.${++puts}` }; // another address for another text
}
