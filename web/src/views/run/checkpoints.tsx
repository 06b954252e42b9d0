import { ActionIcon, Button, Checkbox, Menu } from "@mantine/core";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { useLocation } from "wouter";
import { runPath, send } from "../../api/client";
import { checkpointsQuery, useRunAction } from "../../api/queries";
import type { Checkpoint } from "../../api/types";
import { formatAgo, formatBytes, formatInteger, formatTime, formatValue, metricName } from "../../format";
import { Confirm } from "../../ui/confirm";
import { Icon } from "../../ui/icons";
import { Failure, Waiting } from "../../ui/pieces";
import { say, sayError } from "../../ui/toast";
import { useRun, useSummary } from "./context";

export function Checkpoints() {
  const { id, cursor } = useRun();
  const run = useSummary();
  const { data, error } = useQuery(checkpointsQuery(id));
  const act = useRunAction(id);
  const [, navigate] = useLocation();
  const [chosen, setChosen] = useState<string[]>([]);
  const [doomed, setDoomed] = useState<Checkpoint | null>(null);
  const [origin, setOrigin] = useState<Checkpoint | null>(null);
  if (error && !data) return <Failure error={error} what="The checkpoints cannot be read." />;
  if (!data) return <Waiting what="Reading the checkpoints …" />;
  const metrics = [...new Set(data.flatMap((checkpoint) => Object.keys(checkpoint.metrics)))];
  const toggle = (name: string): void =>
    setChosen(chosen.includes(name) ? chosen.filter((other) => other !== name) : [...chosen, name].slice(-2));
  const total = data.reduce((sum, checkpoint) => sum + checkpoint.bytes, 0);
  const play = (checkpoint: Checkpoint): void => navigate(`/playground?model=${encodeURIComponent(checkpoint.model)}`);
  return (
    <div className="checkpoints">
      {error && <Failure error={error} what="This list may be out of date." />}
      <div className="spread">
        <span className="dim num">
          {data.length === 1 ? "1 resumable state" : `${data.length} resumable states`}, {formatBytes(total)}
        </span>
        <Button
          variant="default"
          disabled={!run.actions.includes("checkpoint")}
          leftSection={<Icon name="save" size={14} />}
          onClick={() => act.mutate({ action: "checkpoint" }, { onError: sayError })}
        >
          Checkpoint now
        </Button>
      </div>
      {!data.length ? (
        <Waiting what="No checkpoint yet." />
      ) : (
        <div className="card scroll-x">
          <table className="plain">
            <caption className="hidden">Checkpoints, newest first</caption>
            <thead>
              <tr>
                <th aria-label="Choose for comparing" />
                <th className="right">Step</th>
                <th>Kept as</th>
                {metrics.map((metric) => (
                  <th key={metric} className="right">
                    {metricName(metric)}
                  </th>
                ))}
                <th className="right">Size</th>
                <th className="wide-only">SHA-256</th>
                <th className="wide-only">Saved</th>
                <th aria-label="Actions" />
              </tr>
            </thead>
            <tbody>
              {data.toReversed().map((checkpoint) => (
                <tr key={checkpoint.name}>
                  <td>
                    <Checkbox
                      aria-label={`Choose ${checkpoint.name} for comparing`}
                      checked={chosen.includes(checkpoint.name)}
                      onChange={() => toggle(checkpoint.name)}
                    />
                  </td>
                  <td className="right">
                    <button
                      type="button"
                      className="linklike num"
                      title="Move the cursor there"
                      onClick={() => cursor.hold(checkpoint.step)}
                    >
                      {formatInteger(checkpoint.step)}
                    </button>
                  </td>
                  <td>
                    <span className="row">
                      {checkpoint.best && (
                        <span className="pill completed">
                          <i />
                          best
                        </span>
                      )}
                      {checkpoint.latest && (
                        <span className="pill">
                          <i />
                          latest
                        </span>
                      )}
                    </span>
                  </td>
                  {metrics.map((metric) => (
                    <td key={metric} className="right">
                      {formatValue(checkpoint.metrics[metric])}
                    </td>
                  ))}
                  <td className="right">{formatBytes(checkpoint.bytes)}</td>
                  <td className="wide-only">
                    <code title={checkpoint.sha256 ?? undefined}>{checkpoint.sha256?.slice(0, 12) ?? "–"}</code>
                  </td>
                  <td className="wide-only" title={formatTime(checkpoint.time)}>
                    {formatAgo(checkpoint.time)}
                  </td>
                  <td>
                    <span className="row" style={{ justifyContent: "flex-end", flexWrap: "nowrap" }}>
                      <Button variant="default" onClick={() => play(checkpoint)}>
                        Playground
                      </Button>
                      <Menu position="bottom-end" width={180}>
                        <Menu.Target>
                          <ActionIcon aria-label={`More for ${checkpoint.name}`}>
                            <Icon name="more" />
                          </ActionIcon>
                        </Menu.Target>
                        <Menu.Dropdown>
                          <Menu.Item
                            disabled={!run.actions.includes("resume") || run.status === "paused"}
                            onClick={() => setOrigin(checkpoint)}
                          >
                            Resume from here
                          </Menu.Item>
                          <Menu.Item color="var(--bad)" onClick={() => setDoomed(checkpoint)}>
                            Delete ({formatBytes(checkpoint.bytes)})
                          </Menu.Item>
                        </Menu.Dropdown>
                      </Menu>
                    </span>
                  </td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
      <Comparison
        checkpoints={chosen.flatMap((name) => data.find((checkpoint) => checkpoint.name === name) ?? [])}
        metrics={metrics}
      />
      {origin && (
        <ResumeFrom
          checkpoint={origin}
          later={data.filter((other) => other.step > origin.step)}
          onClose={() => setOrigin(null)}
        />
      )}
      {doomed && <DeleteCheckpoint checkpoint={doomed} onClose={() => setDoomed(null)} />}
    </div>
  );
}

function Comparison({ checkpoints, metrics }: { checkpoints: Checkpoint[]; metrics: string[] }) {
  const [first, second] = checkpoints.toSorted((a, b) => a.step - b.step);
  if (!first || !second) return <p className="dim">Choose two to compare them.</p>;
  return (
    <div className="card scroll-x">
      <table className="plain">
        <caption className="hidden">The two chosen checkpoints</caption>
        <thead>
          <tr>
            <th>Metric</th>
            <th className="right">step {formatInteger(first.step)}</th>
            <th className="right">step {formatInteger(second.step)}</th>
            <th className="right">difference</th>
          </tr>
        </thead>
        <tbody>
          {metrics.map((metric) => {
            const [a, b] = [first.metrics[metric], second.metrics[metric]];
            const difference = typeof a === "number" && typeof b === "number" ? b - a : null;
            return (
              <tr key={metric}>
                <td>{metricName(metric)}</td>
                <td className="right">{formatValue(a)}</td>
                <td className="right">{formatValue(b)}</td>
                <td className="right">
                  {difference === null ? "–" : `${difference > 0 ? "+" : ""}${formatValue(difference)}`}
                </td>
              </tr>
            );
          })}
        </tbody>
      </table>
    </div>
  );
}

/** Going on from an earlier state gives up the later ones: said first. */
function ResumeFrom({
  checkpoint,
  later,
  onClose,
}: {
  checkpoint: Checkpoint;
  later: Checkpoint[];
  onClose: () => void;
}) {
  const { id } = useRun();
  const act = useRunAction(id);
  const resume = (): void =>
    act.mutate(
      { action: "resume", body: { checkpoint: checkpoint.name, discard_later: later.length > 0 } },
      {
        onError: sayError,
        onSuccess: () => say(`Resuming from step ${formatInteger(checkpoint.step)}.`),
        onSettled: onClose,
      },
    );
  return (
    <Confirm
      title={`Resume from step ${formatInteger(checkpoint.step)}?`}
      answers={["Cancel", "Resume"]}
      pending={act.isPending}
      onClose={onClose}
      onConfirm={resume}
    >
      The run goes on exactly from this state.
      {later.length > 0 && (
        <>
          {" "}
          Its {later.length === 1 ? "later checkpoint is" : `${later.length} later checkpoints are`} deleted:{" "}
          <strong>{formatBytes(later.reduce((sum, other) => sum + other.bytes, 0))}</strong>. The log and the curves
          keep what happened.
        </>
      )}
    </Confirm>
  );
}

function DeleteCheckpoint({ checkpoint, onClose }: { checkpoint: Checkpoint; onClose: () => void }) {
  const { id } = useRun();
  const client = useQueryClient();
  const remove = useMutation({
    mutationFn: () =>
      send<{ bytes: number }>("DELETE", `${runPath(id)}/checkpoints/${encodeURIComponent(checkpoint.name)}`),
    onSuccess: ({ bytes }) => say(`Deleted ${checkpoint.name}: ${formatBytes(bytes)} freed.`),
    onError: sayError,
    onSettled: () => {
      void client.invalidateQueries({ queryKey: ["run", id, "checkpoints"] });
      onClose();
    },
  });
  return (
    <Confirm
      title={`Delete ${checkpoint.name}?`}
      answers={["Keep it", "Delete"]}
      final
      pending={remove.isPending}
      onClose={onClose}
      onConfirm={() => remove.mutate()}
    >
      The state of step {formatInteger(checkpoint.step)} goes for good:{" "}
      <strong>{formatBytes(checkpoint.bytes)}</strong>.
      {checkpoint.latest && " It is the latest: resuming would begin further back."}
      {checkpoint.best && " It is the best one."}
    </Confirm>
  );
}
