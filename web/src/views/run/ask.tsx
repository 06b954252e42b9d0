import { Button, TextInput } from "@mantine/core";
import { useMutation } from "@tanstack/react-query";
import { useState } from "react";
import { runPath, send } from "../../api/client";
import type { RunEvent, SampleEvent } from "../../api/types";
import { formatInteger } from "../../format";
import { sayError } from "../../ui/toast";
import { useRun, useSummary } from "./context";
import { pictureUrl } from "./sample-data";

const FEW = 5;

/** A prompt, or one of the run's pictures, decoded with the weights as they are now: also while paused. */
export function Ask({ asked, pictures }: { asked: SampleEvent[]; pictures: string[] }) {
  const { id } = useRun();
  const run = useSummary();
  const [prompt, setPrompt] = useState("");
  const [all, setAll] = useState(false);
  const able = run.actions.includes("sample");
  const ask = useMutation({
    mutationFn: (body: { prompt?: string; image?: string }) =>
      send<{ event: RunEvent }>("POST", `${runPath(id)}/sample?wait=30`, body),
    onError: sayError,
  });
  if (!able && !asked.length) return null;
  return (
    <section className="card ask" aria-label="Try the live weights">
      {able && run.kind === "caption" && (
        <div className="row">
          <h3>Caption with the live weights</h3>
          {[...new Set(pictures)].map((image) => (
            <button
              key={image}
              type="button"
              className="picture"
              disabled={ask.isPending}
              onClick={() => ask.mutate({ image })}
              aria-label={`Caption picture ${image}`}
            >
              <img src={pictureUrl(id, image)} alt="" width="48" height="48" />
            </button>
          ))}
        </div>
      )}
      {able && run.kind !== "caption" && (
        <form
          className="row"
          onSubmit={(event) => {
            event.preventDefault();
            if (prompt) ask.mutate({ prompt });
          }}
        >
          <TextInput
            className="prompt-box"
            label="Try a prompt with the live weights"
            value={prompt}
            onChange={(event) => setPrompt(event.currentTarget.value)}
            placeholder="Once upon a time"
          />
          <Button type="submit" disabled={!prompt} loading={ask.isPending}>
            Try
          </Button>
        </form>
      )}
      {asked.length > 0 && (
        <ul aria-live="polite" aria-label="Answers">
          {asked.slice(0, all ? undefined : FEW).map((sample) => (
            <li key={sample.seq}>
              <span className="dim num">step {formatInteger(sample.step)}</span>
              {sample.image && <img src={pictureUrl(id, sample.image)} alt="" width="32" height="32" />}
              <p>
                {sample.prompt && <span className="prompt">{sample.prompt} </span>}
                {sample.text}
              </p>
            </li>
          ))}
        </ul>
      )}
      {asked.length > FEW && !all && (
        <button type="button" className="linklike" onClick={() => setAll(true)}>
          {asked.length - FEW} more
        </button>
      )}
    </section>
  );
}
