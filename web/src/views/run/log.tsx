import { Button, TextInput } from "@mantine/core";
import { useEffect, useRef, useState } from "react";
import { get, runPath } from "../../api/client";
import { useRunAction } from "../../api/queries";
import type { Num, RunEvent } from "../../api/types";
import { formatInteger, formatTime, formatValue } from "../../format";
import { Facts, Failure } from "../../ui/pieces";
import { sayError } from "../../ui/toast";
import { useRun, useSummary } from "./context";
import { overwritten } from "./overwritten";
import { useJournal } from "./warnings";

interface LogPart {
  text: string;
  /** Where to go on reading. */
  offset: number;
  size: number;
}

const FOLLOW_MS = 1_000;
const MOST_CHARACTERS = 400_000;

export function LogView() {
  const { cursor } = useRun();
  const { journal, error } = useJournal(1_000);
  return (
    <div className="log-view">
      <section aria-label="Journal">
        <h2>Journal</h2>
        <NoteForm />
        {error && <Failure error={error} what="The journal cannot be read." />}
        <ol className="journal">
          {journal.map((event) => (
            <li key={event.seq} className={event.type}>
              <button
                type="button"
                className="linklike num"
                title={`${formatTime(event.time)}: move the cursor there`}
                onClick={() => cursor.hold(event.step)}
              >
                {formatInteger(event.step)}
              </button>
              <span className="kind">{event.type}</span>
              <div>
                {describe(event)}
                <Evidence event={event} />
              </div>
            </li>
          ))}
        </ol>
      </section>
      <section aria-label="Output">
        <h2>Output of the trainer</h2>
        <Output />
      </section>
    </div>
  );
}

function describe(event: RunEvent): string {
  switch (event.type) {
    case "start":
      return `attempt ${event.attempt}${event.resumed_from ? `, from step ${formatInteger(Number(event.resumed_from))}` : ""} on ${event.device ?? "?"}`;
    case "checkpoint":
      return `${String(event.path ?? "")
        .split("/")
        .pop()}${event.best ? ", the best so far" : ""}`;
    case "complete":
      return String(event.reason ?? "");
    case "note":
      return String(event.text ?? "");
    case "command":
      return `${event.name ?? ""} ${event.ok === false ? "refused" : ""} ${event.message ?? ""}`.trim();
    default:
      return String(event.message ?? event.reason ?? "");
  }
}

/** What a warning knows beside its sentence: the step's examples, the gradient norms of the layers. */
function Evidence({ event }: { event: RunEvent }) {
  const examples = Array.isArray(event.examples) ? event.examples.map(String) : [];
  const norms = Object.entries((event.layer_norms ?? {}) as Record<string, Num>);
  if (!examples.length && !norms.length) return null;
  return (
    <details>
      <summary>
        {examples.length > 0 ? `${examples.length} examples` : ""}
        {norms.length > 0 && `, ${norms.length} layers`}
      </summary>
      {examples.length > 0 && <p>{examples.join("; ")}</p>}
      <Facts items={norms.map(([name, norm]) => [name, formatValue(norm)])} />
    </details>
  );
}

function NoteForm() {
  const { id } = useRun();
  const run = useSummary();
  const [text, setText] = useState("");
  const act = useRunAction(id);
  if (!run.actions.includes("note")) return null;
  return (
    <form
      className="row"
      onSubmit={(event) => {
        event.preventDefault();
        if (text) act.mutate({ action: "note", body: { text } }, { onSuccess: () => setText(""), onError: sayError });
      }}
    >
      <TextInput
        aria-label="Remark"
        placeholder="A remark for the log"
        style={{ flex: 1 }}
        value={text}
        onChange={(event) => setText(event.currentTarget.value)}
      />
      <Button type="submit" variant="default" disabled={!text} loading={act.isPending}>
        Add
      </Button>
    </form>
  );
}

/** Follows log.txt from some way before its end; stays at the end while the reader is at the end. */
function Output() {
  const { id, store } = useRun();
  const [text, setText] = useState("");
  const [problem, setProblem] = useState<string | null>(null);
  const box = useRef<HTMLPreElement>(null);
  const atEnd = useRef(true);
  useEffect(() => {
    const abort = new AbortController();
    const ask = (query: string): Promise<LogPart> => get<LogPart>(`${runPath(id)}/log?${query}`, abort.signal);
    let offset: number | null = null;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const read = async (): Promise<void> => {
      let behind = false;
      try {
        const from: number = offset ?? Math.max(0, (await ask("lines=1")).size - MOST_CHARACTERS);
        const part = await ask(`offset=${from}`);
        const begun = offset === null && from > 0 ? part.text.indexOf("\n") + 1 : 0; // in mid-line
        offset = part.offset;
        behind = part.text !== "" && offset < part.size; // half a letter at the end is held back until it is whole
        if (part.text) setText((held) => overwritten(held + part.text.slice(begun)).slice(-MOST_CHARACTERS));
        setProblem(null);
      } catch (error) {
        if (abort.signal.aborted) return;
        setProblem(error instanceof Error ? error.message : String(error));
      }
      timer = setTimeout(() => void read(), behind ? 0 : FOLLOW_MS);
    };
    setText("");
    void read();
    return () => {
      abort.abort();
      clearTimeout(timer);
    };
  }, [id, store]);
  useEffect(() => {
    if (box.current && atEnd.current) box.current.scrollTop = box.current.scrollHeight;
  }, [text]);
  return (
    <>
      {problem && <p className="dim">{problem}</p>}
      <pre
        ref={box}
        className="card output"
        tabIndex={0}
        aria-label="log.txt"
        onScroll={({ currentTarget: { scrollTop, scrollHeight, clientHeight } }) => {
          atEnd.current = scrollHeight - scrollTop - clientHeight < 30;
        }}
      >
        {text || "(empty)"}
      </pre>
    </>
  );
}
