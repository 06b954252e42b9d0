/**
 * A log as a terminal shows it: what follows a carriage return takes the line's place. One at the very end waits for
 * what will follow it.
 */
export function overwritten(text: string): string {
  const lines = text.split("\n");
  const open = lines.pop() as string;
  const last = (line: string): string => line.slice(line.lastIndexOf("\r") + 1);
  const told = lines.map((line) => last(line.replace(/\r+$/, "")));
  const settled = open.replace(/\r+$/, "");
  return [...told, last(settled) + (settled === open ? "" : "\r")].join("\n");
}
