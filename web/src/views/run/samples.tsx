import { ActionIcon, Slider, Switch, Tooltip } from "@mantine/core";
import { Fragment, useEffect, useEffectEvent, useRef, useState } from "react";
import type { SampleEvent } from "../../api/types";
import { useCursorStep } from "../../charts/cursor";
import { formatInteger } from "../../format";
import { Icon } from "../../ui/icons";
import { Failure, Waiting } from "../../ui/pieces";
import { useUrl } from "../../ui/url";
import { Ask } from "./ask";
import { useRun } from "./context";
import { diffWords } from "./diff";
import { pictureUrl, stepBefore, useSamples, type ProbeRow } from "./sample-data";

const PLAY_MS = 700;

export function Samples() {
  const { cursor } = useRun();
  const { data, error } = useSamples();
  const asked = useCursorStep(cursor);
  const [url, setUrl] = useUrl();
  const [playing, setPlaying] = useState(false);
  const difference = url.has("diff");
  const steps = data?.steps ?? [];
  const step = stepBefore(steps, asked);
  const at = step === null ? 0 : steps.indexOf(step);
  const last = steps.length - 1;
  const hold = (index: number): void => cursor.hold(steps[Math.max(0, Math.min(last, index))] ?? null);
  const turn = useEffectEvent(() => {
    if (at >= last) setPlaying(false);
    else hold(at + 1);
  });
  useEffect(() => {
    if (!playing) return;
    const timer = setInterval(() => turn(), PLAY_MS);
    return () => clearInterval(timer);
  }, [playing]);
  if (error && !data) return <Failure error={error} what="The samples cannot be read." />;
  if (!data) return <Waiting what="Reading the samples …" />;
  return (
    <div className="samples">
      {error && <Failure error={error} what="The samples may be out of date." />}
      <Ask asked={data.asked} pictures={data.rows.flatMap((row) => (row.image ? [row.image] : []))} />
      {!steps.length ? (
        <Waiting what="No sample yet. The run decodes its probes as it goes on." />
      ) : (
        <>
          <div className="sample-bar">
            <Tooltip label={playing ? "Hold" : "Play from the start"}>
              <ActionIcon
                variant="default"
                aria-label={playing ? "Hold" : "Play"}
                onClick={() => {
                  if (!playing && at >= last) hold(0);
                  setPlaying(!playing);
                }}
              >
                <Icon name={playing ? "pause" : "play"} size={14} />
              </ActionIcon>
            </Tooltip>
            <Slider
              className="steps"
              thumbLabel="Step of the samples"
              min={0}
              max={Math.max(1, last)}
              step={1}
              value={at}
              onChange={hold}
              label={(index) => `step ${formatInteger(steps[index] ?? 0)}`}
            />
            <span className="num at">step {step === null ? "–" : formatInteger(step)}</span>
            <Switch
              label="Difference from the step before"
              checked={difference}
              onChange={() => setUrl({ diff: difference ? null : "1" })}
            />
          </div>
          <Matrix rows={data.rows} steps={steps} step={step} difference={difference} />
        </>
      )}
    </div>
  );
}

interface MatrixProps {
  rows: ProbeRow[];
  steps: number[];
  step: number | null;
  difference: boolean;
}

/** Columns that are built: enough to scroll about in, few enough to stay quick with thousands of samples. */
const COLUMNS = 40;

function Matrix({ rows, steps, step, difference }: MatrixProps) {
  const { id, cursor } = useRun();
  const chosen = useRef<HTMLTableCellElement>(null);
  const box = useRef<HTMLDivElement>(null);
  const at = step === null ? steps.length - 1 : steps.indexOf(step);
  const start = Math.max(0, Math.min(at - COLUMNS / 2, steps.length - COLUMNS));
  const shown = steps.slice(start, start + COLUMNS);
  useEffect(() => {
    const [cell, frame] = [chosen.current, box.current];
    if (!cell || !frame) return;
    const probe = frame.querySelector("th")?.clientWidth ?? 0;
    const left = cell.offsetLeft - probe;
    if (left < frame.scrollLeft || cell.offsetLeft + cell.clientWidth > frame.scrollLeft + frame.clientWidth)
      frame.scrollTo({ left: left - (frame.clientWidth - probe - cell.clientWidth) / 2 });
  }, [step]);
  return (
    <div className="card matrix" ref={box} tabIndex={0} role="region" aria-label="Samples by probe and step">
      <table>
        <caption className="hidden">What the model said of each probe, step by step</caption>
        <thead>
          <tr>
            <th scope="col">Probe</th>
            {shown.map((column) => (
              <th
                key={column}
                scope="col"
                ref={column === step ? chosen : undefined}
                className={column === step ? "chosen" : undefined}
              >
                <button
                  type="button"
                  className="num"
                  aria-pressed={column === step}
                  onClick={() => cursor.hold(column)}
                >
                  {formatInteger(column)}
                </button>
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.map((row) => (
            <tr key={row.probe}>
              <th scope="row">
                {row.image && (
                  <img
                    src={pictureUrl(id, row.image)}
                    alt={row.references[0] ?? row.probe}
                    width="112"
                    loading="lazy"
                  />
                )}
                {row.prompt && <span className="prompt">{row.prompt}</span>}
                {row.references.map((reference) => (
                  <span className="reference" key={reference}>
                    {reference}
                  </span>
                ))}
              </th>
              {shown.map((column) => (
                <td key={column} className={column === step ? "chosen" : undefined}>
                  <Cell sample={row.at.get(column)} before={difference ? before(row, column) : null} />
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function before(row: ProbeRow, step: number): SampleEvent | null {
  const earlier = [...row.at.keys()].filter((candidate) => candidate < step);
  return earlier.length ? (row.at.get(Math.max(...earlier)) ?? null) : null;
}

function Cell({ sample, before: earlier }: { sample: SampleEvent | undefined; before: SampleEvent | null }) {
  if (!sample) return <span className="dim">–</span>;
  const text = sample.text ?? "";
  if (!earlier) return <>{text || <span className="dim">(nothing)</span>}</>;
  return (
    <>
      {diffWords(earlier.text ?? "", text).map((piece, index) => {
        const key = `${index}${piece.change}`;
        const Tag = ({ added: "ins", removed: "del", same: "span" } as const)[piece.change];
        return (
          <Fragment key={key}>
            <Tag>{piece.text}</Tag>{" "}
          </Fragment>
        );
      })}
    </>
  );
}
