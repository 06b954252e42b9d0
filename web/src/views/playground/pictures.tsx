import { Button, Slider, Switch, TextInput } from "@mantine/core";
import { useCallback, useEffect, useRef, useState, type CSSProperties } from "react";
import { lines, request } from "../../api/client";
import type { CaptionBeam, Health } from "../../api/types";
import { formatBytes, formatDuration, formatPercent, formatValue, toNumber } from "../../format";
import { Icon } from "../../ui/icons";
import { SteadyButton } from "../../ui/steady-button";
import { wordsOfError } from "../../ui/toast";
import { reveal } from "./reveal";
import { wordsOf } from "./tokens";
import { Webcam } from "./webcam";

type Line =
  | { type: "start"; work: string }
  | { type: "phase"; phase: string }
  | ({ type: "caption"; index: number } & CaptionBeam)
  | { type: "done"; captions?: CaptionBeam[]; consensus?: boolean; width: number; height: number; seconds: number }
  | { type: "error"; error: { message: string } };

interface Answer {
  beams: CaptionBeam[];
  note: string;
}

export function usePictures() {
  const [picture, setPicture] = useState<{ url: string; body: Blob | string } | null>(null);
  const [answer, setAnswer] = useState<Answer | null>(null);
  const [problem, setProblem] = useState<string | null>(null);
  return { picture, setPicture, answer, setAnswer, problem, setProblem };
}

interface Props {
  model: string;
  name: string;
  /** Its training captions can choose among its own. */
  consensus: boolean;
  health: Health | undefined;
  pictures: ReturnType<typeof usePictures>;
}

export function Pictures({ model, name, consensus, health, pictures }: Props) {
  const { picture, setPicture, answer, setAnswer, problem, setProblem } = pictures;
  const [phase, setPhase] = useState<string | null>(null);
  const [beams, setBeams] = useState(3);
  const [longest, setLongest] = useState(30);
  const [chooses, setChooses] = useState(true);
  const [over, setOver] = useState(false);
  const [camera, setCamera] = useState(false);
  const abort = useRef<AbortController | null>(null);
  const file = useRef<HTMLInputElement>(null);
  const output = useRef<HTMLElement>(null);
  const limit = health?.limits?.upload_bytes;

  const caption = useCallback(
    async (body: Blob | string): Promise<void> => {
      abort.current?.abort();
      if (body instanceof Blob && limit && body.size > limit)
        return setProblem(`This file has ${formatBytes(body.size)}; the server takes at most ${formatBytes(limit)}.`);
      const controller = new AbortController();
      abort.current = controller;
      setProblem(null);
      setPhase("sending");
      const form = new FormData();
      if (typeof body === "string") form.set("url", body);
      else form.set("image", body, body instanceof File ? body.name : "picture.png");
      const settings = { model, num_beams: beams, max_length: longest, stream: true };
      for (const [setting, value] of Object.entries(consensus ? { ...settings, consensus: chooses } : settings))
        form.set(setting, String(value));
      try {
        const response = await request("/api/caption", { method: "POST", body: form, signal: controller.signal });
        const found: CaptionBeam[] = [];
        for await (const line of lines<Line>(response)) {
          if (line.type === "phase") setPhase(line.phase);
          else if (line.type === "caption") {
            found.push(line);
            setAnswer({ beams: [...found], note: name });
          } else if (line.type === "done") {
            const how = line.consensus ? ", chosen by the training captions" : ", ranked by the model alone";
            setAnswer({
              beams: found.length ? found : (line.captions ?? []),
              note: `${name}: ${line.width} × ${line.height}, ${formatDuration(line.seconds)}${consensus ? how : ""}`,
            });
          } else if (line.type === "error") throw new Error(line.error.message);
        }
      } catch (error) {
        if (!controller.signal.aborted) setProblem(wordsOfError(error));
      } finally {
        if (abort.current === controller) setPhase(null);
      }
    },
    [model, name, beams, longest, consensus, chooses, limit, setAnswer, setProblem],
  );

  const take = useCallback(
    (body: Blob | string): void => {
      setAnswer(null);
      setPicture((held) => {
        if (held && typeof held.body !== "string") URL.revokeObjectURL(held.url);
        return { url: typeof body === "string" ? "" : URL.createObjectURL(body), body };
      });
      if (!camera) reveal(output.current); // a camera stays in view, to be pointed
      void caption(body);
    },
    [caption, camera, setAnswer, setPicture],
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
          <SteadyButton
            size="sm"
            variant="default"
            off={!picture || phase !== null}
            onClick={() => picture && void caption(picture.body)}
          >
            Again
          </SteadyButton>
          <SteadyButton size="sm" variant="default" off={phase === null} onClick={() => abort.current?.abort()}>
            Stop
          </SteadyButton>
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
        {consensus && (
          <Switch
            label="Training captions choose"
            description="among the beams, by what they say of similar pictures"
            checked={chooses}
            onChange={(event) => setChooses(event.currentTarget.checked)}
          />
        )}
      </div>
      <section className="output-side" aria-label="Captions" aria-busy={phase !== null} ref={output}>
        <p role="status" className="dim num">
          {phase === null ? (answer?.note ?? "") : `${phase} …`}
        </p>
        {problem && (
          <div className="notice bad" role="alert">
            {problem}
          </div>
        )}
        {!answer && !problem && phase === null && (
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
            {beam.ending === "length" && <small title="It did not end by itself: allow more tokens.">… cut</small>}
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
