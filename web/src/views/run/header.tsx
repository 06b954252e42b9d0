import { ActionIcon, Menu, Tooltip } from "@mantine/core";
import { useEffect, useRef, useState } from "react";
import { Link, useLocation } from "wouter";
import { usePatchRun, useRunAction } from "../../api/queries";
import type { Action, RunEvent, RunSummary } from "../../api/types";
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
import { Confirm } from "../../ui/confirm";
import { Icon, type IconName } from "../../ui/icons";
import { useKeys } from "../../ui/keys";
import { ACTIVE, StatusPill } from "../../ui/pieces";
import { SteadyButton } from "../../ui/steady-button";
import { copyCommand, say, sayError } from "../../ui/toast";
import { DeleteDialog, LabelsDialog } from "../runs/dialogs";
import { useDoubt } from "../../ui/doubt";
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
          {run.status === "running" && run.detail && <span className="dim">{run.detail} …</span>}
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
  useDoubt(connection === "reconnecting");
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

/** What an action is called and does where that depends on the run. */
function words(run: RunSummary): Partial<Record<Action, [string, string]>> {
  if (run.status === "queued")
    return {
      resume: ["Start", "Start it, or put it into the queue (p)"],
      stop: ["Leave the queue", "It can be started later"],
    };
  const over = !ACTIVE.has(run.status) && run.status !== "completed";
  return over && !run.resumable ? { resume: ["Try again", "Begin anew, with the same settings (p)"] } : {};
}

/** Tells what became of a checkpoint that somebody has asked for. */
function tellCheckpoint({ type, step, name, message, ok, command }: RunEvent): void {
  if (command === undefined) return;
  if (type === "checkpoint") say(`Checkpoint of step ${formatInteger(step)} saved.`);
  if (type === "command" && name === "checkpoint") say(`Step ${formatInteger(step)}: ${message}.`, ok === false);
}

function Actions({ run }: { run: RunSummary }) {
  const { id, store } = useRun();
  const act = useRunAction(id);
  const [killing, setKilling] = useState(false);
  const can = (action: Action): boolean => run.actions.includes(action);
  const named = words(run);
  useEffect(() => store.onEvent(tellCheckpoint), [store]);
  const ask = (action: Exclude<Action, "delete">): void => {
    if (act.isPending) return;
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
      {BUTTONS.map(([action, label, icon, help]) => {
        const [ownLabel, ownHelp] = named[action] ?? [label, help];
        const primary = action === "resume" && can("resume") && !(named.resume && run.status !== "queued");
        return (
          <Tooltip key={action} label={ownHelp}>
            <SteadyButton
              variant={primary ? "filled" : "default"}
              className={action === "kill" ? "danger" : undefined}
              leftSection={<Icon name={icon} size={14} />}
              off={!can(action)}
              aria-busy={act.isPending && act.variables.action === action}
              onClick={() => (action === "kill" ? setKilling(true) : ask(action))}
            >
              {ownLabel}
            </SteadyButton>
          </Tooltip>
        );
      })}
      <MoreMenu run={run} />
      <Confirm
        opened={killing}
        title={`Kill ${id}?`}
        answers={["Let it run", "Kill"]}
        final
        onClose={() => setKilling(false)}
        onConfirm={() => ask("kill")}
      >
        The process ends at once (SIGKILL). Steps since the last checkpoint are computed again when you resume. “Stop
        and save” loses nothing.
      </Confirm>
    </div>
  );
}

function MoreMenu({ run }: { run: RunSummary }) {
  const { detail } = useRun();
  const [dialog, setDialog] = useState<"labels" | "delete" | null>(null);
  const opener = useRef<HTMLButtonElement>(null);
  const [, navigate] = useLocation();
  const patch = usePatchRun();
  const name = encodeURIComponent(run.id);
  const close = (): void => {
    setDialog(null);
    requestAnimationFrame(() => opener.current?.focus());
  };
  return (
    <>
      <Menu position="bottom-end" width={200}>
        <Menu.Target>
          <ActionIcon ref={opener} variant="default" size={30} aria-label="More">
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
          <Menu.Item onClick={() => copyCommand(detail.command)}>Copy as command</Menu.Item>
          <Menu.Item color="var(--bad)" disabled={!run.actions.includes("delete")} onClick={() => setDialog("delete")}>
            Delete ({formatBytes(detail.bytes)})
          </Menu.Item>
        </Menu.Dropdown>
      </Menu>
      {dialog === "labels" && <LabelsDialog run={detail} onClose={close} />}
      {dialog === "delete" && <DeleteDialog run={run} onClose={close} onDeleted={() => navigate("/")} />}
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
  const { detail } = useRun();
  const lines = detail.log_tail ?? [];
  const tail = useRef<HTMLPreElement>(null);
  useEffect(() => {
    if (tail.current) tail.current.scrollTop = tail.current.scrollHeight; // the end says why
  }, [lines.length, broken]);
  if (!broken) return null;
  return (
    <div className="notice bad" role="alert">
      <div className="spread">
        <span>
          <strong>{run.status === "crashed" ? "The run crashed" : "The run failed"}</strong>
          {run.detail && `: ${run.detail.replace(/\.$/, "")}`}.{" "}
          {run.resumable ? "Resume goes on from the last checkpoint." : "There is no checkpoint to resume from."}
        </span>
        <Link href={`/runs/${encodeURIComponent(run.id)}/log`}>whole log</Link>
      </div>
      {lines.length > 0 && (
        <pre className="tail" ref={tail} tabIndex={0} role="region" aria-label="The log's last lines">
          {lines.join("\n")}
        </pre>
      )}
    </div>
  );
}
