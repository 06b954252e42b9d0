import { Button, Slider, TextInput } from "@mantine/core";
import { useCallback, useEffect, useRef, useState, type CSSProperties } from "react";
import { lines, request } from "../../api/client";
import type { CaptionBeam, Health } from "../../api/types";
import { formatBytes, formatDuration, formatPercent, formatValue, toNumber } from "../../format";
import { Icon } from "../../ui/icons";
import { say, sayError } from "../../ui/toast";
import { wordsOf } from "./tokens";
import { Webcam } from "./webcam";

type Line =
  | { type: "start"; work: string }
  | { type: "phase"; phase: string }
  | ({ type: "caption"; index: number } & CaptionBeam)
  | { type: "done"; captions?: CaptionBeam[]; width: number; height: number; seconds: number }
  | { type: "error"; error: { message: string } };

interface Answer {
  beams: CaptionBeam[];
  note: string;
}

export function Pictures({ model, health }: { model: string; health: Health | undefined }) {
  const [picture, setPicture] = useState<{ url: string; body: Blob | string } | null>(null);
  const [answer, setAnswer] = useState<Answer | null>(null);
  const [phase, setPhase] = useState<string | null>(null);
  const [beams, setBeams] = useState(3);
  const [longest, setLongest] = useState(30);
  const [over, setOver] = useState(false);
  const [camera, setCamera] = useState(false);
  const abort = useRef<AbortController | null>(null);
  const file = useRef<HTMLInputElement>(null);
  const limit = health?.limits?.upload_bytes;

  const caption = useCallback(
    async (body: Blob | string): Promise<void> => {
      abort.current?.abort();
      const controller = new AbortController();
      abort.current = controller;
      setPhase("sending");
      const form = new FormData();
      if (typeof body === "string") form.set("url", body);
      else form.set("image", body, body instanceof File ? body.name : "picture.png");
      for (const [name, value] of Object.entries({ model, num_beams: beams, max_length: longest, stream: true }))
        form.set(name, String(value));
      try {
        const response = await request("/api/caption", { method: "POST", body: form, signal: controller.signal });
        const found: CaptionBeam[] = [];
        for await (const line of lines<Line>(response)) {
          if (line.type === "phase") setPhase(line.phase);
          else if (line.type === "caption") {
            found.push(line);
            setAnswer({ beams: [...found], note: "" });
          } else if (line.type === "done")
            setAnswer({
              beams: found.length ? found : (line.captions ?? []),
              note: `${line.width} × ${line.height}, ${formatDuration(line.seconds)}`,
            });
          else if (line.type === "error") throw new Error(line.error.message);
        }
      } catch (error) {
        if (!controller.signal.aborted) sayError(error);
      } finally {
        if (abort.current === controller) setPhase(null);
      }
    },
    [model, beams, longest],
  );

  const take = useCallback(
    (body: Blob | string): void => {
      if (body instanceof Blob && limit && body.size > limit)
        return say(`This file has ${formatBytes(body.size)}; the server takes at most ${formatBytes(limit)}.`, true);
      setAnswer(null);
      setPicture((held) => {
        if (held && typeof held.body !== "string") URL.revokeObjectURL(held.url);
        return { url: typeof body === "string" ? "" : URL.createObjectURL(body), body };
      });
      void caption(body);
    },
    [caption, limit],
  );

  useEffect(() => () => abort.current?.abort(), []);
  useEffect(() => {
    const onPaste = (event: ClipboardEvent): void => {
      const item = [...(event.clipboardData?.files ?? [])].find((candidate) => candidate.type.startsWith("image/"));
      if (!item) return;
      event.preventDefault();
      take(item);
    };
    addEventListener("paste", onPaste);
    return () => removeEventListener("paste", onPaste);
  }, [take]);

  return (
    <div className="play">
      <div className="card controls">
        <div
          className={`drop${over ? " over" : ""}`}
          onDragOver={(event) => {
            event.preventDefault();
            setOver(true);
          }}
          onDragLeave={() => setOver(false)}
          onDrop={(event) => {
            event.preventDefault();
            setOver(false);
            const dropped = event.dataTransfer.files[0];
            if (dropped) take(dropped);
          }}
        >
          {picture?.url ? (
            <img src={picture.url} alt="The picture to caption" />
          ) : (
            <p className="dim">Drop a picture here, or paste one.</p>
          )}
        </div>
        <input
          ref={file}
          type="file"
          accept="image/*"
          hidden
          aria-label="Picture file"
          onChange={(event) => {
            const chosen = event.currentTarget.files?.[0];
            if (chosen) take(chosen);
            event.currentTarget.value = "";
          }}
        />
        <div className="row">
          <Button size="sm" onClick={() => file.current?.click()}>
            Choose a file
          </Button>
          <Button
            size="sm"
            variant="default"
            leftSection={<Icon name="camera" size={14} />}
            aria-pressed={camera}
            onClick={() => setCamera(!camera)}
          >
            Camera
          </Button>
          <Button
            size="sm"
            variant="default"
            disabled={!picture || phase !== null}
            onClick={() => picture && void caption(picture.body)}
          >
            Again
          </Button>
          <Button size="sm" variant="default" disabled={phase === null} onClick={() => abort.current?.abort()}>
            Stop
          </Button>
        </div>
        {camera && <Webcam busy={phase !== null} onPicture={take} onClose={() => setCamera(false)} />}
        {health?.allow_urls && <UrlBox onUrl={take} />}
        <div className="setting">
          <div className="spread">
            <span>
              Beams <span className="dim">1: greedy</span>
            </span>
            <b className="num">{beams}</b>
          </div>
          <Slider label={null} thumbLabel="Beams" min={1} max={8} value={beams} onChange={setBeams} />
        </div>
        <div className="setting">
          <div className="spread">
            <span>
              Longest caption <span className="dim">tokens</span>
            </span>
            <b className="num">{longest}</b>
          </div>
          <Slider label={null} thumbLabel="Longest caption" min={4} max={80} value={longest} onChange={setLongest} />
        </div>
      </div>
      <section className="output-side" aria-label="Captions" aria-busy={phase !== null}>
        <p role="status" className="dim num">
          {phase === null ? (answer?.note ?? "") : `${phase} …`}
        </p>
        {!answer && phase === null && (
          <p className="dim">
            The captions appear here, best first, each word underlined by how sure the model was of it.
          </p>
        )}
        {answer && <Beams beams={answer.beams} />}
      </section>
    </div>
  );
}

function Beams({ beams }: { beams: CaptionBeam[] }) {
  const scores = beams.map((beam) => toNumber(beam.score) ?? Number.NEGATIVE_INFINITY);
  const best = Math.max(...scores);
  return (
    <ol className="beams">
      {beams.map((beam, index) => (
        <li key={index} className="card">
          <p className={index === 0 ? "best" : ""}>
            {wordsOf(beam.tokens).map((word, place) => (
              <span
                key={place}
                className="word"
                style={{ "--surprise": `${Math.round((1 - word.probability) * 100)}%` } as CSSProperties}
                title={`${formatPercent(word.probability, 1)} sure`}
              >
                {word.text}
                <small className="num">{formatPercent(word.probability)}</small>
              </span>
            ))}
            {!beam.tokens.length && beam.text}
          </p>
          <div className="score num" title="log-probability, as the beam search ranks it">
            <span className="bar">
              <i style={{ width: `${Math.exp((scores[index] as number) - best) * 100}%` }} />
            </span>
            {formatValue(beam.score)}
          </div>
        </li>
      ))}
    </ol>
  );
}

function UrlBox({ onUrl }: { onUrl: (url: string) => void }) {
  const [url, setUrl] = useState("");
  return (
    <form
      className="row"
      onSubmit={(event) => {
        event.preventDefault();
        if (url) onUrl(url);
      }}
    >
      <TextInput
        style={{ flex: 1 }}
        aria-label="Address of a picture"
        placeholder="https://…"
        type="url"
        value={url}
        onChange={(event) => setUrl(event.currentTarget.value)}
      />
      <Button type="submit" variant="default" disabled={!url}>
        Fetch
      </Button>
    </form>
  );
}
