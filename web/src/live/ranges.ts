/** Which sequence numbers are held: a sorted list of closed ranges. Adding one twice is seen, not stored. */
export class Ranges {
  readonly ranges: [number, number][] = [];
  count = 0;
  duplicates = 0;

  /** Returns whether `seq` was new. Numbers that grow by one, the usual case, cost O(1). */
  add(seq: number): boolean {
    const last = this.ranges.at(-1);
    if (last && seq === last[1] + 1) last[1] = seq;
    else if (!last || seq > last[1]) this.ranges.push([seq, seq]);
    else if (!this.insert(seq)) {
      this.duplicates += 1;
      return false;
    }
    this.count += 1;
    return true;
  }

  private insert(seq: number): boolean {
    const at = this.ranges.findIndex(([, to]) => to >= seq - 1);
    const range = this.ranges[at] as [number, number];
    if (seq >= range[0] && seq <= range[1]) return false;
    if (seq === range[1] + 1) range[1] = seq;
    else if (seq === range[0] - 1) range[0] = seq;
    else {
      this.ranges.splice(at, 0, [seq, seq]);
      return true;
    }
    const next = this.ranges[at + 1];
    if (next && next[0] === range[1] + 1) {
      range[1] = next[1];
      this.ranges.splice(at + 1, 1);
    }
    return true;
  }
}
