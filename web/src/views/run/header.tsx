import { ActionIcon, Button, Menu, Modal, Tooltip } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { Link, useLocation } from "wouter";
import { get, runPath } from "../../api/client";
import { usePatchRun, useRunAction } from "../../api/queries";
import type { Action, RunSummary } from "../../api/types";
import {
  formatBytes,
  formatDuration,
  formatInteger,
  formatRange,
  formatValue,
  metricName,
  toNumber,
} from "../../format";
import type { Connection } from "../../live/feed";
import { Icon, type IconName } from "../../ui/icons";
import { useKeys } from "../../ui/keys";
import { ACTIVE, StatusPill } from "../../ui/pieces";
import { say, sayError } from "../../ui/toast";
import { DeleteDialog, LabelsDialog } from "../runs/dialogs";
import { useConnection, useNumbers, useRun, useSummary } from "./context";

export function RunHeader() {
  const run = useSummary();
  const { detail } = useRun();
  return (
    <header className="run-header">
      <div className="spread">
        <div className="row title">
          <h1>{run.id}</h1>
          <StatusPill run={run} />
          <ConnectionState run={run} />
          {detail.tags.map((tag) => (
            <span className="tag" key={tag}>
              {tag}
            </span>
          ))}
        </div>
        <Actions run={run} />
      </div>
      {detail.note && <p className="run-note">{detail.note}</p>}
      <Progress />
      <Trouble run={run} />
    </header>
  );
}

const CONNECTIONS: Record<Connection, [string, string]> = {
  connecting: ["wait", "connecting …"],
  live: ["live", "live"],
  reconnecting: ["lost", "connection lost, trying again …"],
  gone: ["lost", "this run is gone"],
  unauthorized: ["lost", "not signed in"],
};

function ConnectionState({ run }: { run: RunSummary }) {
  const connection = useConnection();
  const [kind, text] = CONNECTIONS[connection];
  if (connection === "live" && !ACTIVE.has(run.status) && run.status !== "queued") return null;
  return (
    <span className={`connection ${kind}`} role="status">
      <i aria-hidden="true" />
      {text}
    </span>
  );
}

const BUTTONS: [Exclude<Action, "delete" | "note" | "sample">, string, IconName, string][] = [
  ["pause", "Pause", "pause", "Hold at the next step, the model kept in memory (p)"],
  ["resume", "Resume", "play", "Go on (p)"],
  ["checkpoint", "Checkpoint", "save", "Save a resumable state now (c)"],
  ["stop", "Stop and save", "stop", "Save, then end; it can be resumed"],
  ["kill", "Kill", "kill", "End the process at once: what is not saved is lost"],
];

function Actions({ run }: { run: RunSummary }) {
  const { id } = useRun();
  const act = useRunAction(id);
  const [killing, setKilling] = useState(false);
  const can = (action: Action): boolean => run.actions.includes(action);
  const ask = (action: Exclude<Action, "delete">): void => {
    setKilling(false);
    act.mutate(
      { action },
      { onError: sayError, onSuccess: () => action === "checkpoint" && say("Checkpoint asked for.") },
    );
  };
  useKeys({
    p: can("pause") ? () => ask("pause") : can("resume") ? () => ask("resume") : undefined,
    c: can("checkpoint") ? () => ask("checkpoint") : undefined,
  });
  return (
    <div className="row actions" role="group" aria-label="Steer the run">
      {BUTTONS.map(([action, label, icon, help]) => (
        <Tooltip key={action} label={help}>
          <Button
            variant={action === "resume" && can("resume") ? "filled" : "default"}
            className={action === "kill" ? "danger" : undefined}
            leftSection={<Icon name={icon} size={14} />}
            disabled={!can(action)}
            loading={act.isPending && act.variables.action === action}
            onClick={() => (action === "kill" ? setKilling(true) : ask(action))}
          >
            {label}
          </Button>
        </Tooltip>
      ))}
      <MoreMenu run={run} />
      <Modal
        opened={killing}
        onClose={() => setKilling(false)}
        title={`Kill ${id}?`}
        closeButtonProps={{ "aria-label": "Close" }}
      >
        <p>
          The process ends at once (SIGKILL). Steps since the last checkpoint are computed again when you resume. “Stop
          and save” loses nothing.
        </p>
        <div className="row" style={{ justifyContent: "flex-end", marginTop: 16 }}>
          <Button variant="default" onClick={() => setKilling(false)} data-autofocus>
            Let it run
          </Button>
          <Button color="red.8" onClick={() => ask("kill")}>
            Kill
          </Button>
        </div>
      </Modal>
    </div>
  );
}

function MoreMenu({ run }: { run: RunSummary }) {
  const { detail } = useRun();
  const [dialog, setDialog] = useState<"labels" | "delete" | null>(null);
  const [, navigate] = useLocation();
  const patch = usePatchRun();
  const name = encodeURIComponent(run.id);
  return (
    <>
      <Menu position="bottom-end" width={200}>
        <Menu.Target>
          <ActionIcon variant="default" size={30} aria-label="More">
            <Icon name="more" />
          </ActionIcon>
        </Menu.Target>
        <Menu.Dropdown>
          <Menu.Item
            onClick={() =>
              navigate(
                `/playground?model=${encodeURIComponent(ACTIVE.has(run.status) ? `live:${run.id}` : `run:${run.id}`)}`,
              )
            }
          >
            Playground
          </Menu.Item>
          <Menu.Item onClick={() => navigate(`/new?from=${name}`)}>New run like this</Menu.Item>
          <Menu.Item onClick={() => patch.mutate({ id: run.id, pinned: !detail.pinned }, { onError: sayError })}>
            {detail.pinned ? "Unpin" : "Pin"}
          </Menu.Item>
          <Menu.Item onClick={() => setDialog("labels")}>Tags and note</Menu.Item>
          <Menu.Item
            onClick={() =>
              void navigator.clipboard.writeText(detail.command ?? "").then(() => say("Command copied."), sayError)
            }
          >
            Copy as command
          </Menu.Item>
          <Menu.Item color="var(--bad)" disabled={!run.actions.includes("delete")} onClick={() => setDialog("delete")}>
            Delete ({formatBytes(detail.bytes)})
          </Menu.Item>
        </Menu.Dropdown>
      </Menu>
      {dialog === "labels" && <LabelsDialog run={detail} onClose={() => setDialog(null)} />}
      {dialog === "delete" && (
        <DeleteDialog run={run} onClose={() => setDialog(null)} onDeleted={() => navigate("/")} />
      )}
    </>
  );
}

function Progress() {
  const { store, detail } = useRun();
  const run = useNumbers();
  const row = store.metrics.rows - 1;
  const live = (key: string): number | undefined => (row >= 0 ? store.metrics.columns.get(key)?.[row] : undefined);
  const step = Math.max(run.step, store.metrics.step.at(-1) ?? 0);
  const total = run.total_steps;
  const epoch = live("epoch") ?? run.epoch;
  const rate = live(`${run.unit}_per_second`) ?? toNumber(run.rate);
  const perEpoch = Number(detail.start?.steps_per_epoch ?? 0);
  const epochs = run.epochs ?? (perEpoch && total ? total / perEpoch : null);
  const share = total ? Math.min(1, step / total) : 0;
  const ticks =
    perEpoch && total && total / perEpoch < 60
      ? Array.from({ length: Math.ceil(total / perEpoch) - 1 }, (_, i) => ((i + 1) * perEpoch) / total)
      : [];
  const facts: [string, string][] = [
    ["step", `${formatInteger(step)}${total ? ` of ${formatInteger(total)}` : ""}`],
    ...(epoch === null
      ? []
      : [
          ["epoch", `${epoch.toFixed(epoch < 100 ? 2 : 0)}${epochs ? ` of ${Number(epochs.toFixed(2))}` : ""}`] as [
            string,
            string,
          ],
        ]),
    ...(rate === null || !run.unit ? [] : [[`${run.unit}/s`, formatValue(rate)] as [string, string]]),
    ["elapsed", formatDuration(run.elapsed)],
    ...(ACTIVE.has(run.status) && run.eta ? [["to go", formatRange(run.eta)] as [string, string]] : []),
    ...(run.best
      ? [
          [
            `best ${metricName(run.best.metric)}`,
            `${formatValue(run.best.value)} at step ${formatInteger(run.best.step)}`,
          ] as [string, string],
        ]
      : []),
  ];
  return (
    <>
      <div
        className={`epochs ${run.status}`}
        role="progressbar"
        aria-label="Steps done"
        aria-valuemin={0}
        aria-valuemax={100}
        aria-valuenow={Math.round(share * 100)}
      >
        <i style={{ width: `${share * 100}%` }} />
        {ticks.map((at) => (
          <b key={at} style={{ left: `${at * 100}%` }} />
        ))}
      </div>
      <dl className="vitals">
        {facts.map(([name, value]) => (
          <div key={name}>
            <dd className="num">{value}</dd>
            <dt>{name}</dt>
          </div>
        ))}
      </dl>
    </>
  );
}

/** Why a run is not at work, and what can be done. */
function Trouble({ run }: { run: RunSummary }) {
  const broken = run.status === "crashed" || run.status === "failed";
  const { data } = useQuery({
    queryKey: ["run", run.id, "tail", run.attempt, run.status],
    queryFn: ({ signal }) => get<{ lines: string[] }>(`${runPath(run.id)}/log?lines=50`, signal),
    enabled: broken,
  });
  if (!broken) return null;
  return (
    <div className="notice bad" role="alert">
      <div className="spread">
        <span>
          <strong>{run.status === "crashed" ? "The run crashed" : "The run failed"}</strong>
          {run.detail && `: ${run.detail}`}.{" "}
          {run.resumable ? "Resume goes on from the last checkpoint." : "There is no checkpoint to resume from."}
        </span>
        <Link href={`/runs/${encodeURIComponent(run.id)}/log`}>whole log</Link>
      </div>
      {data && data.lines.length > 0 && (
        <pre className="tail" tabIndex={0} aria-label="The log's last lines">
          {data.lines.join("\n")}
        </pre>
      )}
    </div>
  );
}
