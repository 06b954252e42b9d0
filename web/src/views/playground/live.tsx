import { Textarea } from "@mantine/core";
import { useMutation, useQuery } from "@tanstack/react-query";
import type { Dispatch, SetStateAction } from "react";
import { Link } from "wouter";
import { runPath, send } from "../../api/client";
import { samplesQuery } from "../../api/queries";
import type { RunSummary, SampleEvent } from "../../api/types";
import { formatInteger } from "../../format";
import { SteadyButton } from "../../ui/steady-button";
import { sayError } from "../../ui/toast";
import { pictureUrl } from "../run/sample-data";
import type { Texts } from "./text";

/** What a run answered. */
export interface Sample {
  run: string;
  event: SampleEvent;
}

interface Props {
  run: RunSummary;
  texts: Texts;
  onSample: Dispatch<SetStateAction<Sample[]>>;
}

/** A run at work answers with the weights that it has now, at its next step boundary, or while it is paused. */
export function LiveText({ run, texts: { prompt, setPrompt }, onSample }: Props) {
  const { data: known } = useQuery({ ...samplesQuery(run.id, "playground"), enabled: run.kind === "caption" });
  const ask = useMutation({
    mutationFn: ({ run, ...body }: { run: string; prompt?: string; image?: string }) =>
      send<{ event: SampleEvent }>("POST", `${runPath(run)}/sample?wait=30`, body),
    onSuccess: ({ event }, { run }) => onSample((held) => [{ run, event }, ...held]),
    onError: sayError,
  });
  return (
    <div className="live-text">
      <p className="dim">
        The weights of <Link href={`/runs/${encodeURIComponent(run.id)}`}>{run.id}</Link> as they are now ({run.status},
        step {formatInteger(run.step)}).
      </p>
      {run.kind === "caption" ? (
        <div className="row">
          {(known?.probes ?? [])
            .flatMap((probe) => probe.image ?? [])
            .map((image) => (
              <button
                key={image}
                type="button"
                className="thumb"
                aria-disabled={ask.isPending}
                onClick={() => ask.isPending || ask.mutate({ run: run.id, image })}
              >
                <img src={pictureUrl(run.id, image)} alt={`Caption ${image}`} width="96" height="96" />
              </button>
            ))}
        </div>
      ) : (
        <form
          onSubmit={(event) => {
            event.preventDefault();
            if (prompt) ask.mutate({ run: run.id, prompt });
          }}
        >
          <Textarea label="Prompt" rows={3} value={prompt} onChange={(event) => setPrompt(event.currentTarget.value)} />
          <SteadyButton type="submit" size="sm" mt={8} off={!prompt || ask.isPending}>
            {ask.isPending ? "Asking …" : "Try"}
          </SteadyButton>
        </form>
      )}
    </div>
  );
}

export function Answers({ samples }: { samples: Sample[] }) {
  return (
    <ul className="answers" aria-live="polite" aria-label="Answers">
      {samples.map(({ run: from, event: answer }) => (
        <li key={`${from}/${answer.seq}`} className="card">
          <span className="dim num">
            {from}, step {formatInteger(answer.step)}
          </span>
          {answer.image && <img src={pictureUrl(from, answer.image)} alt="" width="48" height="48" />}
          <p>
            <span className="prompt">{answer.prompt} </span>
            {answer.text}
          </p>
        </li>
      ))}
    </ul>
  );
}
