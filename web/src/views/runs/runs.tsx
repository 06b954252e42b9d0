import { Button, Checkbox, TextInput } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { useRef, useState } from "react";
import { Link, useLocation } from "wouter";
import { healthQuery, runsQuery } from "../../api/queries";
import type { RunSummary } from "../../api/types";
import { Icon } from "../../ui/icons";
import { useKeys } from "../../ui/keys";
import { ACTIVE, Failure, Waiting } from "../../ui/pieces";
import { useUrl } from "../../ui/url";
import { DeleteDialog, LabelsDialog } from "./dialogs";
import { useDoubt } from "../../ui/doubt";
import { RunRow } from "./row";
import "./runs.css";

export default function Runs() {
  const { data, error, isPending } = useQuery(runsQuery);
  const { data: health } = useQuery(healthQuery);
  const [url, setUrl] = useUrl();
  const [, navigate] = useLocation();
  const [labelled, setLabelled] = useState<RunSummary | null>(null);
  const [doomed, setDoomed] = useState<RunSummary | null>(null);
  const main = useRef<HTMLAnchorElement>(null);
  const table = useRef<HTMLTableElement>(null);
  const filter = useRef<HTMLInputElement>(null);
  const query = url.get("q") ?? "";
  const chosen = (url.get("choose") ?? "")
    .split(",")
    .filter((id) => (data ? data.runs.some((run) => run.id === id) : id)); // one that is deleted since is not chosen
  useDoubt(error !== null);
  const runs = sift(data?.runs ?? [], query);
  const choose = (id: string): void => {
    const next = chosen.includes(id) ? chosen.filter((other) => other !== id) : [...chosen, id];
    setUrl({ choose: next.join(",") || null });
  };
  const rowLinks = (): HTMLAnchorElement[] => [
    ...(table.current?.querySelectorAll<HTMLAnchorElement>("a.name") ?? []),
  ];
  /** A dialog that closes hands the keyboard back to the row's menu; one that deletes the row, to its neighbour. */
  const close = (): void => {
    const id = (labelled ?? doomed)?.id;
    setLabelled(null);
    setDoomed(null);
    focusSoon(() => table.current?.querySelector<HTMLElement>(`[data-menu="${CSS.escape(id ?? "")}"]`));
  };
  const leave = (id: string): void => {
    const links = rowLinks();
    const at = links.findIndex((link) => link.dataset.run === id);
    const next = links[at + 1] ?? links[at - 1] ?? main.current;
    focusSoon(() => next);
  };
  const move = (by: number): void => {
    const links = rowLinks();
    const at = links.indexOf(document.activeElement as HTMLAnchorElement);
    links[Math.max(0, Math.min(links.length - 1, at + by))]?.focus();
  };
  useKeys({
    j: () => move(1),
    k: () => move(-1),
    "/": () => filter.current?.focus(),
    x: () => {
      const id = (document.activeElement as HTMLElement | null)?.dataset.run;
      if (id) choose(id);
    },
  });
  const active = runs.filter((run) => ACTIVE.has(run.status)).length;
  return (
    <>
      <div className="spread" style={{ marginBottom: 14 }}>
        <div className="row">
          <h1>Runs</h1>
          {data && (
            <span className="dim num">
              {runs.length}
              {active > 0 && `, ${active} at work`}
            </span>
          )}
        </div>
        <div className="row">
          <TextInput
            ref={filter}
            className="runs-filter"
            aria-label="Filter runs"
            placeholder="Name, tag, note, state"
            leftSection={<Icon name="search" size={14} />}
            value={query}
            onChange={(event) => setUrl({ q: event.currentTarget.value || null })}
            onKeyDown={(event) => event.key === "Escape" && event.currentTarget.blur()}
          />
          <Button
            variant="default"
            disabled={chosen.length < 2}
            onClick={() => navigate(`/compare?runs=${chosen.map(encodeURIComponent).join(",")}`)}
          >
            Compare{chosen.length > 1 ? ` ${chosen.length}` : ""}
          </Button>
          <Button ref={main} component={Link} href="/new">
            New run
          </Button>
        </div>
      </div>
      {error && <Failure error={error} what="The list of runs cannot be read." />}
      {isPending && <Waiting what="Reading the run folders …" />}
      {data && !data.runs.length && <NoRuns folder={health?.runs_dir} />}
      {data && data.runs.length > 0 && !runs.length && (
        <p className="empty">
          No run matches “{query}”.{" "}
          <button type="button" className="linklike" onClick={() => setUrl({ q: null })}>
            Show all
          </button>
        </p>
      )}
      {runs.length > 0 && (
        <div className="card runs-card">
          <table className="plain runs" ref={table}>
            <caption className="hidden">Runs, newest first, pinned ones on top</caption>
            <thead>
              <tr>
                <th aria-label="Choose for comparing" />
                <th>Run</th>
                <th>State</th>
                <th className="wide-only">Last loss</th>
                <th className="right wide-only">Best</th>
                <th className="right wide-only">Rate</th>
                <th className="right wide-only">Time to go</th>
                <th className="right wide-only">Updated</th>
                <th aria-label="More" />
              </tr>
            </thead>
            <tbody>
              {runs.map((run) => (
                <RunRow key={run.id} run={run} onLabels={() => setLabelled(run)} onDelete={() => setDoomed(run)}>
                  <Checkbox
                    aria-label={`Choose ${run.id} for comparing`}
                    data-run={run.id}
                    checked={chosen.includes(run.id)}
                    onChange={() => choose(run.id)}
                  />
                </RunRow>
              ))}
            </tbody>
          </table>
        </div>
      )}
      {data && data.left_out.length > 0 && (
        <div className="notice" style={{ marginTop: 14 }}>
          <strong>
            {data.left_out.length === 1 ? "One folder is" : `${data.left_out.length} folders are`} not listed.
          </strong>
          <ul>
            {data.left_out.map(({ name, message }) => (
              <li key={name}>{message}</li>
            ))}
          </ul>
        </div>
      )}
      {labelled && <LabelsDialog run={labelled} onClose={close} />}
      {doomed && <DeleteDialog run={doomed} onClose={close} onDeleted={() => leave(doomed.id)} />}
    </>
  );
}

/** Once the dialog has let go of the focus. */
function focusSoon(find: () => HTMLElement | null | undefined): void {
  requestAnimationFrame(() => find()?.focus());
}

/** Pinned runs first, then as the server orders them; every word of the query must be found. */
function sift(runs: RunSummary[], query: string): RunSummary[] {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  const text = (run: RunSummary): string =>
    [run.id, run.verb, run.kind, run.status, run.note, ...run.tags, run.pinned ? "pinned" : ""].join(" ").toLowerCase();
  const found = words.length ? runs.filter((run) => words.every((word) => text(run).includes(word))) : runs;
  return [...found.filter((run) => run.pinned), ...found.filter((run) => !run.pinned)];
}

function NoRuns({ folder }: { folder: string | undefined }) {
  return (
    <div className="card empty">
      <h2>No runs yet</h2>
      <p>
        A run is a folder
        {folder && (
          <>
            {" "}
            below <code>{folder}</code>
          </>
        )}
        . Begin one here, or in a terminal: it shows up either way.
      </p>
      <p style={{ margin: "14px 0" }}>
        <Button component={Link} href="/new" size="sm">
          New run
        </Button>
      </p>
      <code>limner demo</code>
    </div>
  );
}
