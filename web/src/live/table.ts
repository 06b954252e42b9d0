import type { RunEvent } from "../api/types";
import { toNumber } from "../format";

const HEAD = new Set(["seq", "attempt", "step", "time", "type"]);

/** Events of one type as columns, oldest first. A cell is undefined where its event lacks the key. */
export class LiveTable {
  readonly seq: number[] = [];
  readonly attempt: number[] = [];
  readonly step: number[] = [];
  readonly time: number[] = [];
  readonly columns = new Map<string, (number | undefined)[]>();

  get rows(): number {
    return this.seq.length;
  }

  append(event: RunEvent): void {
    const row = this.rows;
    this.seq.push(event.seq);
    this.attempt.push(event.attempt);
    this.step.push(event.step);
    this.time.push(event.time);
    for (const [key, value] of Object.entries(event)) if (!HEAD.has(key)) this.put(row, key, value);
    for (const column of this.columns.values()) if (column.length <= row) column.push(undefined);
  }

  /** Numbers go into their column; objects into one column a key ("time.forward"); all else is no metric. */
  private put(row: number, key: string, value: unknown): void {
    if (value !== null && typeof value === "object" && !Array.isArray(value)) {
      for (const [inner, item] of Object.entries(value)) this.put(row, `${key}.${inner}`, item);
      return;
    }
    const number = toNumber(value);
    if (number === null) return;
    let column = this.columns.get(key);
    if (!column) {
      column = Array.from<number | undefined>({ length: row });
      this.columns.set(key, column);
    }
    column.push(number);
  }

  /** The first row whose seq is greater than `seq`. */
  rowAfter(seq: number): number {
    let low = 0;
    let high = this.rows;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((this.seq[middle] as number) > seq) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  /** Forgets the rows up to `seq`; they are held elsewhere. */
  dropThrough(seq: number): void {
    const rows = this.rowAfter(seq);
    if (!rows) return;
    for (const column of [this.seq, this.attempt, this.step, this.time]) column.splice(0, rows);
    for (const column of this.columns.values()) column.splice(0, rows);
  }
}
