export interface Piece {
  text: string;
  change: "same" | "added" | "removed";
}

/** How `before` became `after`, word by word (longest common subsequence). */
export function diffWords(before: string, after: string): Piece[] {
  const a = words(before);
  const b = words(after);
  const width = b.length + 1;
  const length = new Uint16Array((a.length + 1) * width); // common words of a[i:] and b[j:]
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      length[i * width + j] =
        a[i] === b[j]
          ? (length[(i + 1) * width + j + 1] as number) + 1
          : Math.max(length[(i + 1) * width + j] as number, length[i * width + j + 1] as number);
  const pieces: Piece[] = [];
  const put = (text: string, change: Piece["change"]): void => {
    const last = pieces.at(-1);
    if (last?.change === change) last.text += ` ${text}`;
    else pieces.push({ text, change });
  };
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) {
      put(a[i++] as string, "same");
      j++;
    } else if (
      i < a.length &&
      (j === b.length || (length[(i + 1) * width + j] as number) >= (length[i * width + j + 1] as number))
    )
      put(a[i++] as string, "removed");
    else put(b[j++] as string, "added");
  }
  return pieces;
}

function words(text: string): string[] {
  return text.split(/\s+/).filter(Boolean);
}
