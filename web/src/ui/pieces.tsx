// Small pieces that every view shares.
import { Button } from "@mantine/core";
import { Component, type ReactNode } from "react";
import type { Num, RunSummary, Status } from "../api/types";
import { toNumber } from "../format";

export function StatusPill({ run }: { run: Pick<RunSummary, "status" | "queue_position" | "detail"> }) {
  const place = run.status === "queued" && run.queue_position ? ` · ${run.queue_position}` : "";
  return (
    <span className={`pill ${run.status}`} title={run.detail || undefined}>
      <i aria-hidden="true" />
      {run.status}
      {place}
    </span>
  );
}

export const ACTIVE: ReadonlySet<Status> = new Set(["running", "paused", "stopping"]);

/** The shape of a loss at a glance; what was not finite is a gap with a red tick. */
export function Sparkline({
  values,
  width = 96,
  height = 24,
}: {
  values: (Num | null)[];
  width?: number;
  height?: number;
}) {
  const numbers = values.map(toNumber);
  const finite = numbers.filter((value): value is number => value !== null && Number.isFinite(value));
  const low = Math.min(...finite);
  const high = Math.max(...finite);
  const x = (index: number): number => 1 + (index * (width - 2)) / Math.max(1, numbers.length - 1);
  const y = (value: number): number => height - 2 - ((value - low) / (high - low || 1)) * (height - 4);
  let path = "";
  let down = false;
  const bad: number[] = [];
  numbers.forEach((value, index) => {
    if (value === null) return;
    if (!Number.isFinite(value)) {
      bad.push(index);
      down = false;
      return;
    }
    path += `${down ? "L" : "M"}${x(index).toFixed(1)} ${y(value).toFixed(1)}`;
    down = true;
  });
  return (
    <svg width={width} height={height} aria-hidden="true">
      <path d={path} fill="none" stroke="var(--c1)" strokeWidth="1.3" strokeLinejoin="round" />
      {bad.map((index) => (
        <path key={index} d={`M${x(index)} 0v6`} stroke="var(--bad)" strokeWidth="1.5" />
      ))}
    </svg>
  );
}

export function Facts({ items }: { items: [string, ReactNode][] }) {
  return (
    <dl className="facts">
      {items.map(([name, value]) => (
        <div key={name} style={{ display: "contents" }}>
          <dt>{name}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}

export function Waiting({ what }: { what: string }) {
  return (
    <p className="empty" role="status">
      {what}
    </p>
  );
}

export function Failure({ error, what }: { error: unknown; what: string }) {
  return (
    <div className="notice bad" role="alert">
      <strong>{what}</strong> {error instanceof Error ? error.message : String(error)}
    </div>
  );
}

/** A view that breaks says so and leaves the rest of the page at work; at another `place` there is another try. */
export class Boundary extends Component<{ place: string; children: ReactNode }, { place: string; error: unknown }> {
  override state = { place: this.props.place, error: null };

  static getDerivedStateFromError(error: unknown): { error: unknown } {
    return { error };
  }

  static getDerivedStateFromProps({ place }: { place: string }, held: { place: string }): object | null {
    return place === held.place ? null : { place, error: null };
  }

  override render(): ReactNode {
    if (this.state.error === null) return this.props.children;
    return (
      <div className="empty">
        <Failure error={this.state.error} what="This view broke." />
        <Button mt="md" onClick={() => location.reload()}>
          Reload
        </Button>
      </div>
    );
  }
}
