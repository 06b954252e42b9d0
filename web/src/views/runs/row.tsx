import { ActionIcon, Menu } from "@mantine/core";
import { useMutation, useQueryClient } from "@tanstack/react-query";
import type { ReactNode } from "react";
import { Link, useLocation } from "wouter";
import { send } from "../../api/client";
import { usePatchRun } from "../../api/queries";
import type { RunSummary } from "../../api/types";
import {
  formatAgo,
  formatCount,
  formatDuration,
  formatInteger,
  formatRange,
  formatTime,
  formatValue,
  metricName,
} from "../../format";
import { Icon } from "../../ui/icons";
import { ACTIVE, Sparkline, StatusPill } from "../../ui/pieces";
import { sayError } from "../../ui/toast";

interface Props {
  run: RunSummary;
  onLabels: () => void;
  onDelete: () => void;
  /** What stands in the first cell. */
  children: ReactNode;
}

export function RunRow({ run, onLabels, onDelete, children }: Props) {
  const here = `/runs/${encodeURIComponent(run.id)}`;
  const loss = run.last.loss as number | string | undefined;
  const toGo = ACTIVE.has(run.status) && run.eta ? formatRange(run.eta) : null;
  const share = run.total_steps ? Math.min(1, run.step / run.total_steps) : null;
  return (
    <tr>
      <td className="narrow">{children}</td>
      <td className="who">
        <Link href={here} className="name" data-run={run.id}>
          {run.id}
        </Link>
        {run.pinned && (
          <span className="pinned" title="pinned">
            <Icon name="pin" size={12} />
          </span>
        )}
        <div className="about">
          <span>{run.kind ?? run.verb}</span>
          {run.attempt > 1 && <span>attempt {run.attempt}</span>}
          {run.recorded && <span>recorded</span>}
          {run.tags.map((tag) => (
            <span className="tag" key={tag}>
              {tag}
            </span>
          ))}
          {run.note && (
            <span className="note" title={run.note}>
              {run.note}
            </span>
          )}
        </div>
      </td>
      <td className="state">
        <StatusPill run={run} />
        <div
          className="progress"
          title={`step ${formatInteger(run.step)}${run.total_steps ? ` of ${formatInteger(run.total_steps)}` : ""}`}
        >
          {share !== null && (
            <span className="track" aria-hidden="true">
              <i className={run.status} style={{ width: `${share * 100}%` }} />
            </span>
          )}
          <span className="num dim">
            {formatCount(run.step)}
            {run.total_steps ? ` / ${formatCount(run.total_steps)}` : ""}
          </span>
        </div>
        <div className="phone num">
          {loss !== undefined && <span>loss {formatValue(loss as never)}</span>}
          {toGo && <span className="dim">{toGo} to go</span>}
        </div>
        {run.detail && (
          <div className={`detail ${run.status}`} title={run.detail}>
            {run.detail}
          </div>
        )}
      </td>
      <td className="wide-only">
        <div className="loss">
          <Sparkline values={run.sparkline} />
          <span className="num">{formatValue(loss as never)}</span>
        </div>
      </td>
      <td className="right wide-only">
        {run.best ? (
          <>
            {formatValue(run.best.value)}
            <div className="dim small">
              {metricName(run.best.metric)} · step {formatCount(run.best.step)}
            </div>
          </>
        ) : (
          "–"
        )}
      </td>
      <td className="right wide-only">
        {run.rate === null ? "–" : formatValue(run.rate)}
        {run.rate !== null && run.unit && <div className="dim small">{run.unit}/s</div>}
      </td>
      <td className="right wide-only">
        {toGo ?? "–"}
        <div className="dim small">{run.elapsed > 0 && `${ACTIVE.has(run.status) ? "after" : "took"} ${formatDuration(run.elapsed)}`}</div>
      </td>
      <td className="right wide-only" title={formatTime(run.updated)}>
        {formatAgo(run.updated ?? run.created)}
      </td>
      <td className="narrow">
        <RowMenu run={run} here={here} onLabels={onLabels} onDelete={onDelete} />
      </td>
    </tr>
  );
}

function RowMenu({
  run,
  here,
  onLabels,
  onDelete,
}: {
  run: RunSummary;
  here: string;
  onLabels: () => void;
  onDelete: () => void;
}) {
  const patch = usePatchRun();
  const [, navigate] = useLocation();
  const client = useQueryClient();
  const first = useMutation({
    mutationFn: () => send("POST", `/api/queue/${encodeURIComponent(run.id)}/move`, { position: 1 }),
    onSuccess: () => client.invalidateQueries({ queryKey: ["runs"] }),
    onError: sayError,
  });
  return (
    <Menu position="bottom-end" width={190}>
      <Menu.Target>
        <ActionIcon aria-label={`More for ${run.id}`} data-menu={run.id}>
          <Icon name="more" />
        </ActionIcon>
      </Menu.Target>
      <Menu.Dropdown>
        <Menu.Item
          leftSection={<Icon name="pin" size={14} />}
          onClick={() => patch.mutate({ id: run.id, pinned: !run.pinned }, { onError: sayError })}
        >
          {run.pinned ? "Unpin" : "Pin"}
        </Menu.Item>
        {(run.queue_position ?? 0) > 1 && (
          <Menu.Item leftSection={<Icon name="play" size={14} />} onClick={() => first.mutate()}>
            First in the queue
          </Menu.Item>
        )}
        <Menu.Item leftSection={<Icon name="note" size={14} />} onClick={onLabels}>
          Tags and note
        </Menu.Item>
        <Menu.Item leftSection={<Icon name="spark" size={14} />} onClick={() => navigate(`${here}/checkpoints`)}>
          Checkpoints
        </Menu.Item>
        <Menu.Item
          leftSection={<Icon name="copy" size={14} />}
          onClick={() => navigate(`/new?from=${encodeURIComponent(run.id)}`)}
        >
          New run like this
        </Menu.Item>
        <Menu.Item
          color="var(--bad)"
          leftSection={<Icon name="trash" size={14} />}
          disabled={!run.actions.includes("delete")}
          onClick={onDelete}
        >
          Delete
        </Menu.Item>
      </Menu.Dropdown>
    </Menu>
  );
}
