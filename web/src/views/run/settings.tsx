import { Button } from "@mantine/core";
import type { ReactNode } from "react";
import { Link } from "wouter";
import { formatBytes, formatCount, formatInteger } from "../../format";
import { Facts } from "../../ui/pieces";
import { copyCommand } from "../../ui/toast";
import { useRun } from "./context";

/** The run as it was asked for, and what it found when it began. */
export function Settings() {
  const { detail } = useRun();
  return (
    <div className="settings">
      <section className="card" aria-label="Command">
        <div className="spread">
          <h2>Command</h2>
          <div className="row">
            <Button variant="default" onClick={() => copyCommand(detail.command)}>
              Copy
            </Button>
            <Button variant="default" component={Link} href={`/new?from=${encodeURIComponent(detail.id)}`}>
              New run like this
            </Button>
          </div>
        </div>
        <pre className="command" tabIndex={0}>
          {detail.command ?? "not known"}
        </pre>
      </section>
      <section className="card" aria-label="Settings">
        <h2>Settings</h2>
        <Facts items={entries(detail.config)} />
      </section>
      <section className="card" aria-label="At the start">
        <h2>At the start of attempt {detail.attempt}</h2>
        {detail.start ? <Facts items={entries(detail.start)} /> : <p className="dim">It has not begun.</p>}
      </section>
      <section className="card" aria-label="Versions">
        <h2>Versions</h2>
        <Facts items={Object.entries(detail.versions ?? {})} />
      </section>
    </div>
  );
}

/** Not settings, but of the log. */
const OF_THE_LOG = new Set(["seq", "type", "time", "attempt", "step", "pid_started", "pid_key"]);

/** A group of numbers, as the parts of a model, is told line by line below its name. */
function entries(object: Record<string, unknown>, above = ""): [string, ReactNode][] {
  return Object.entries(object)
    .filter(([name]) => !OF_THE_LOG.has(name))
    .flatMap(([name, value]): [string, ReactNode][] => {
      const title = above + name.replaceAll("_", " ");
      if (value && typeof value === "object" && !Array.isArray(value))
        return entries(value as Record<string, unknown>, `${title} · `);
      return [[title, show(title, value)]];
    });
}

function show(name: string, value: unknown): ReactNode {
  if (value === null || value === undefined) return <span className="dim">unset</span>;
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "number") {
    if (!Number.isInteger(value)) return String(Number(value.toPrecision(6)));
    if (/^pid$|seed/.test(name)) return String(value);
    if (name.startsWith("memory")) return formatBytes(value);
    return name.endsWith("parameters") ? `${formatInteger(value)} (${formatCount(value)})` : formatInteger(value);
  }
  if (Array.isArray(value) && !value.length) return <span className="dim">none</span>;
  if (Array.isArray(value)) return value.map(String).join(", ");
  return String(value);
}
