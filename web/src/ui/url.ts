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
/** The long texts of this page by their names, which no storage has to have room for. */
const texts = new Map<string, string>();
let puts = 0;

/** What `putText` put there; null as well where it was put in another tab: see `isElsewhere`. */
export function getText(url: URLSearchParams, name: string): string | null {
  if (!url.has(`${name}.kept`)) return url.get(name);
  try {
    return texts.get(name) ?? sessionStorage.getItem(`limner.${name}`);
  } catch {
    return null; // the browser keeps nothing for this page
  }
}

/** Whether the address speaks of a text that this tab does not have. */
export function isElsewhere(url: URLSearchParams, name: string): boolean {
  return url.has(`${name}.kept`) && getText(url, name) === null;
}

/** The change of the address that holds a text; one that is too long is kept in this tab instead, for a reload. */
export function putText(name: string, text: string | null): Record<string, string | null> {
  if (text === null || text.length <= LONGEST) return { [name]: text, [`${name}.kept`]: null };
  texts.set(name, text);
  try {
    sessionStorage.removeItem(`limner.${name}`); // else an older text would come back where this one has no room
    sessionStorage.setItem(`limner.${name}`, text);
  } catch {
    // there is no room: it is on the page, but will not outlive a reload
  }
  return { [name]: null, [`${name}.kept`]: `${Date.now()}.${++puts}` }; // another address for another text
}
