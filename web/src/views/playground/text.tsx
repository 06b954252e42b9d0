import { Slider, Textarea, TextInput } from "@mantine/core";
import { useEffect, useRef, useState } from "react";
import { lines, request } from "../../api/client";
import type { Token } from "../../api/types";
import { formatValue } from "../../format";
import { SteadyButton } from "../../ui/steady-button";
import { sayError } from "../../ui/toast";
import { getText, putText, useUrl } from "../../ui/url";
import { reveal } from "./reveal";
import { Alternatives, TokenText } from "./tokens";

interface Settings {
  temperature: number;
  top_k: number;
  top_p: number;
  max_tokens: number;
  seed: string;
}

const DEFAULTS: Settings = { temperature: 0.8, top_k: 0, top_p: 0.95, max_tokens: 80, seed: "" };

interface Answer {
  key: number;
  model: string;
  /** The model's. */
  name: string;
  prompt: string;
  tokens: Token[];
  forced: number;
  note: string;
}

type Line =
  | { type: "start"; seed: number }
  | ({ type: "token" } & Token)
  | { type: "done"; finish: string; tokens_per_second: number; seed: number }
  | { type: "error"; error: { message: string } };

/** Why a text ended, in words. */
const ENDS: Record<string, string> = {
  length: "as many tokens as asked",
  context: "the model's context is full",
  eos: "the model ended the text",
  stop: "it came to a stop string",
  cancelled: "stopped",
};

export type Texts = ReturnType<typeof useTexts>;

export function useTexts() {
  const [url] = useUrl();
  const [settings, setSettings] = useState<Settings>(() => fromUrl(url));
  const [prompt, setPrompt] = useState(getText(url, "prompt") ?? "");
  const [answers, setAnswers] = useState<Answer[]>([]);
  const [shown, setShown] = useState(0);
  return { settings, setSettings, prompt, setPrompt, answers, setAnswers, shown, setShown };
}

export function Text({ model, name, texts }: { model: string; name: string; texts: Texts }) {
  const { settings, setSettings, prompt, setPrompt, answers, setAnswers, shown, setShown } = texts;
  const [, setUrl] = useUrl();
  const output = useRef<HTMLElement>(null);
  const [chosen, setChosen] = useState<number | null>(null);
  const [busy, setBusy] = useState(false);
  const abort = useRef<AbortController | null>(null);
  useEffect(() => () => abort.current?.abort(), []);
  const answer = answers.find((candidate) => candidate.key === shown);

  /** `forced`: the tokens to begin with, when a person branches; the server answers with what follows them. */
  const generate = async (text: string, forced: Token[] = []): Promise<void> => {
    abort.current?.abort();
    const controller = new AbortController();
    abort.current = controller;
    const made: Answer = {
      key: Date.now(),
      model,
      name,
      prompt: text,
      tokens: forced,
      forced: forced.length,
      note: "",
    };
    const update = (change: Partial<Answer>): void => {
      Object.assign(made, change);
      setAnswers((held) => held.map((candidate) => (candidate.key === made.key ? { ...made } : candidate)));
    };
    setAnswers((held) => [{ ...made }, ...held].slice(0, 12));
    setShown(made.key);
    setChosen(null);
    setBusy(true);
    setUrl({ ...putText("prompt", text || null), ...toUrl(settings) });
    reveal(output.current);
    try {
      const { seed, ...rest } = settings;
      const body = {
        model,
        prompt: text,
        ...rest,
        seed: seed === "" ? null : Number(seed),
        forced: forced.map((token) => token.id),
        alternatives: 8,
        stream: true,
      };
      const response = await request("/api/generate", {
        method: "POST",
        body: JSON.stringify(body),
        headers: { "Content-Type": "application/json" },
        signal: controller.signal,
      });
      for await (const line of lines<Line>(response)) {
        if (line.type === "token") update({ tokens: [...made.tokens, line] });
        else if (line.type === "done")
          update({
            note: `${ENDS[line.finish] ?? line.finish}, ${formatValue(line.tokens_per_second)} tokens/s, seed ${line.seed}`,
          });
        else if (line.type === "error") throw new Error(line.error.message);
      }
    } catch (error) {
      update({ note: controller.signal.aborted ? "stopped" : "failed" });
      if (!controller.signal.aborted) sayError(error);
    } finally {
      if (abort.current === controller) setBusy(false);
    }
  };

  return (
    <div className="play">
      <form
        className="card controls"
        onSubmit={(event) => {
          event.preventDefault();
          void generate(prompt);
        }}
      >
        <Textarea
          label="Prompt"
          rows={5}
          value={prompt}
          onChange={(event) => setPrompt(event.currentTarget.value)}
          onKeyDown={(event) => {
            if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) void generate(prompt);
          }}
        />
        <SettingSlider
          label="Temperature"
          help="0 takes the likeliest token"
          value={settings.temperature}
          min={0}
          max={2}
          step={0.05}
          onChange={(temperature) => setSettings({ ...settings, temperature })}
        />
        <SettingSlider
          label="Top-p"
          help="the likeliest tokens that make up this share"
          value={settings.top_p}
          min={0.05}
          max={1}
          step={0.05}
          onChange={(top_p) => setSettings({ ...settings, top_p })}
        />
        <SettingSlider
          label="Top-k"
          help="only the k likeliest; 0: all"
          value={settings.top_k}
          min={0}
          max={100}
          step={1}
          onChange={(top_k) => setSettings({ ...settings, top_k })}
        />
        <SettingSlider
          label="Max tokens"
          help=""
          value={settings.max_tokens}
          min={1}
          max={400}
          step={1}
          onChange={(max_tokens) => setSettings({ ...settings, max_tokens })}
        />
        <TextInput
          label="Seed"
          description="unset: another one each time"
          inputMode="numeric"
          pattern="[0-9]*"
          value={settings.seed}
          onChange={(event) => setSettings({ ...settings, seed: event.currentTarget.value.replace(/\D/g, "") })}
        />
        <div className="row">
          <SteadyButton type="submit" size="sm" off={busy}>
            Generate
          </SteadyButton>
          <SteadyButton size="sm" variant="default" off={!busy} onClick={() => abort.current?.abort()}>
            Stop
          </SteadyButton>
        </div>
      </form>
      <section className="output-side" aria-label="Text" ref={output}>
        <div className="card generated" aria-busy={busy}>
          {answer ? (
            <>
              <span className="prompt">{answer.prompt}</span>
              <TokenText tokens={answer.tokens} chosen={chosen} forced={answer.forced} onChoose={setChosen} />
              {busy && <span className="caret" aria-hidden="true" />}
            </>
          ) : (
            <span className="dim">
              What the model says appears here, each token tinted by how unlikely it was. Choose a token to see what
              else it might have been, and branch from there.
            </span>
          )}
        </div>
        <div className="spread dim num">
          <span role="status">{answer && [answer.name, answer.note].filter(Boolean).join(": ")}</span>
          {answer && <Legend />}
        </div>
        {answer && chosen !== null && answer.tokens[chosen] && (
          <Alternatives
            token={answer.tokens[chosen]}
            onBranch={
              busy || answer.model !== model // another model may have other tokens
                ? null
                : (option) => void generate(answer.prompt, [...answer.tokens.slice(0, chosen), option])
            }
            onClose={() => setChosen(null)}
          />
        )}
        {answers.length > 1 && (
          <Earlier
            answers={answers}
            shown={shown}
            onShow={(key) => {
              setShown(key);
              setChosen(null);
            }}
          />
        )}
      </section>
    </div>
  );
}

function Legend() {
  return (
    <span className="tint-legend">
      {["certain", "", "", "", "1 in 1,000"].map((label, index) => (
        <i key={index} style={{ "--surprise": `${index * 15.5}%` } as React.CSSProperties}>
          {label}
        </i>
      ))}
    </span>
  );
}

function Earlier({ answers, shown, onShow }: { answers: Answer[]; shown: number; onShow: (key: number) => void }) {
  return (
    <div className="earlier">
      <h3>Earlier</h3>
      <ul>
        {answers.map((answer) => (
          <li key={answer.key}>
            <button
              type="button"
              className="linklike"
              aria-current={answer.key === shown}
              onClick={() => onShow(answer.key)}
            >
              <span className="dim">
                {answer.name}
                {answer.forced > 0 && `, branch at ${answer.forced}`}:
              </span>{" "}
              {(answer.prompt + answer.tokens.map((token) => token.text).join("")).slice(0, 110) || "(nothing)"}
            </button>
          </li>
        ))}
      </ul>
    </div>
  );
}

interface SettingProps {
  label: string;
  help: string;
  value: number;
  min: number;
  max: number;
  step: number;
  onChange: (value: number) => void;
}

function SettingSlider({ label, help, value, ...rest }: SettingProps) {
  return (
    <div className="setting">
      <div className="spread">
        <span>
          {label} {help && <span className="dim">{help}</span>}
        </span>
        <b className="num">{value}</b>
      </div>
      <Slider label={null} thumbLabel={label} value={value} {...rest} />
    </div>
  );
}

function fromUrl(url: URLSearchParams): Settings {
  const number = (name: keyof Settings): number => {
    const given = url.get(name);
    return given !== null && Number.isFinite(Number(given)) ? Number(given) : (DEFAULTS[name] as number);
  };
  return {
    temperature: number("temperature"),
    top_k: number("top_k"),
    top_p: number("top_p"),
    max_tokens: number("max_tokens"),
    seed: url.get("seed") ?? "",
  };
}

function toUrl(settings: Settings): Record<string, string | null> {
  return Object.fromEntries(
    Object.entries(settings).map(([name, value]) => [
      name,
      value === DEFAULTS[name as keyof Settings] ? null : String(value),
    ]),
  );
}
