import { Select } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { useEffect, useState } from "react";
import { Link } from "wouter";
import { healthQuery, modelsQuery, runsQuery } from "../../api/queries";
import type { ModelEntry, RunSummary } from "../../api/types";
import { formatBytes, formatCount } from "../../format";
import { Failure, Waiting } from "../../ui/pieces";
import { useUrl } from "../../ui/url";
import { Answers, LiveText, type Sample } from "./live";
import { Pictures, usePictures } from "./pictures";
import { Text, useTexts } from "./text";
import "./playground.css";

/** Models on disk, and active runs, whose weights answer as they are now. */
export default function Playground() {
  const models = useQuery(modelsQuery);
  const runs = useQuery(runsQuery);
  const failure = models.error && <Failure error={models.error} what="The models cannot be listed." />;
  if (failure && !models.data) return failure;
  if (!models.data || runs.isPending) return <Waiting what="Looking for models …" />;
  return (
    <>
      {failure && <div style={{ marginBottom: 14 }}>{failure}</div>}
      <Bench models={models.data.models} runs={runs.data?.runs} />
    </>
  );
}

/** What a person wrote and was answered is held here, above the models: another one can be asked the same. */
function Bench({ models, runs }: { models: ModelEntry[]; runs: RunSummary[] | undefined }) {
  const { data: health } = useQuery(healthQuery);
  const [url, setUrl] = useUrl();
  const texts = useTexts();
  const pictures = usePictures();
  const [samples, setSamples] = useState<Sample[]>([]);
  const live = (runs ?? []).filter((run) => run.actions.includes("sample") && run.kind);
  const choices = [
    {
      group: "Live weights of runs at work",
      items: live.map((run) => ({ value: `live:${run.id}`, label: `${run.id} · step ${formatCount(run.step)}` })),
    },
    { group: "Language models", items: models.filter((model) => model.kind === "text").map(option) },
    { group: "Captioners", items: models.filter((model) => model.kind === "caption").map(option) },
  ].filter((group) => group.items.length);
  const named = url.get("model");
  const first = choices[0]?.items[0]?.value ?? null;
  const asked = named ?? first;
  useEffect(() => {
    if (named === null && first !== null) setUrl({ model: first }); // tomorrow another one may be the first
  }, [named, first, setUrl]);
  const entry = models.find((model) => model.id === asked);
  const run = live.find((candidate) => `live:${candidate.id}` === asked);
  const ended = runs && !run ? asked?.match(/^live:(.+)$/)?.[1] : undefined;
  const kind = entry?.kind ?? checkpointKind(asked, runs ?? []);
  const name = entry?.label ?? asked ?? "";
  return (
    <>
      <div className="spread" style={{ marginBottom: 14 }}>
        <h1>Playground</h1>
        {choices.length > 0 && (
          <Select
            className="model-choice"
            aria-label="Model"
            data={choices}
            value={entry || run ? asked : null}
            placeholder={asked ?? "Choose a model"}
            searchable
            onChange={(value) => value && setUrl({ model: value })}
          />
        )}
      </div>
      {!choices.length && !asked && (
        <div className="card empty">
          <h2>No model yet</h2>
          <p>A finished run, a checkpoint, or a run at work can be tried here.</p>
          <p style={{ marginTop: 10 }}>
            <Link href="/new">New run</Link>
          </p>
        </div>
      )}
      {ended && (
        <div className="notice">
          The run {ended} is not at work (any more).{" "}
          {models.some(({ id }) => id === `run:${ended}`) && (
            <button type="button" className="linklike" onClick={() => setUrl({ model: `run:${ended}` })}>
              Ask its model
            </button>
          )}
        </div>
      )}
      {asked && !kind && !run && !ended && runs && (
        <div className="notice">
          The model <code>{asked}</code> is not there (any more). Choose another one.
        </div>
      )}
      {entry && (
        <p className="dim num about-model">
          {entry.parameters !== null && `${formatCount(entry.parameters)} parameters, `}
          {formatBytes(entry.bytes)}
          {entry.run && (
            <>
              {" "}
              · from <Link href={`/runs/${encodeURIComponent(entry.run)}`}>{entry.run}</Link>
            </>
          )}
          {entry.loaded && " · in memory"}
        </p>
      )}
      {asked && kind === "text" && <Text model={asked} name={name} texts={texts} />}
      {asked && kind === "caption" && (
        <Pictures
          model={asked}
          name={name}
          consensus={entry?.consensus ?? false}
          health={health}
          pictures={pictures}
        />
      )}
      {run && <LiveText run={run} texts={texts} onSample={setSamples} />}
      {(run || ended) && <Answers samples={samples} />}
    </>
  );
}

/** "run:NAME/step-000500" is in no list: what it is follows from its run. */
function checkpointKind(asked: string | null, runs: RunSummary[]): "text" | "caption" | null {
  const name = asked?.match(/^run:(.+)\/[^/]+$/)?.[1];
  const kind = runs.find((run) => run.id === name)?.kind;
  return kind ? (kind === "caption" ? "caption" : "text") : null;
}

function option(model: { id: string; label: string }): { value: string; label: string } {
  return { value: model.id, label: model.label };
}
