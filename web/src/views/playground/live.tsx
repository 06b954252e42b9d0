import { Button, Textarea } from "@mantine/core";
import { useMutation, useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { Link } from "wouter";
import { runPath, send } from "../../api/client";
import { samplesQuery } from "../../api/queries";
import type { RunSummary, SampleEvent } from "../../api/types";
import { formatInteger } from "../../format";
import { sayError } from "../../ui/toast";
import { pictureUrl } from "../run/sample-data";

/** A run at work answers with the weights that it has now, at its next step boundary, or while it is paused. */
export function LiveText({ run }: { run: RunSummary }) {
  const [prompt, setPrompt] = useState("");
  const [answers, setAnswers] = useState<SampleEvent[]>([]);
  const { data: samples } = useQuery({ ...samplesQuery(run.id, "playground"), enabled: run.kind === "caption" });
  const ask = useMutation({
    mutationFn: (body: { prompt?: string; image?: string }) =>
      send<{ event: SampleEvent }>("POST", `${runPath(run.id)}/sample?wait=30`, body),
    onSuccess: ({ event }) => setAnswers((held) => [event, ...held]),
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
          {(samples?.probes ?? [])
            .flatMap((probe) => probe.image ?? [])
            .map((image) => (
              <button
                key={image}
                type="button"
                className="thumb"
                disabled={ask.isPending}
                onClick={() => ask.mutate({ image })}
              >
                <img src={pictureUrl(run.id, image)} alt={`Caption ${image}`} width="96" height="96" />
              </button>
            ))}
        </div>
      ) : (
        <form
          onSubmit={(event) => {
            event.preventDefault();
            if (prompt) ask.mutate({ prompt });
          }}
        >
          <Textarea label="Prompt" rows={3} value={prompt} onChange={(event) => setPrompt(event.currentTarget.value)} />
          <Button type="submit" size="sm" mt={8} disabled={!prompt} loading={ask.isPending}>
            Try
          </Button>
        </form>
      )}
      <ul className="answers" aria-live="polite" aria-label="Answers">
        {answers.map((answer) => (
          <li key={answer.seq} className="card">
            <span className="dim num">step {formatInteger(answer.step)}</span>
            {answer.image && <img src={pictureUrl(run.id, answer.image)} alt="" width="48" height="48" />}
            <p>
              <span className="prompt">{answer.prompt} </span>
              {answer.text}
            </p>
          </li>
        ))}
      </ul>
    </div>
  );
}
