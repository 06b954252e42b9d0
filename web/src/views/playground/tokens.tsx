import { Fragment, useEffect, useRef, useState, type CSSProperties, type KeyboardEvent } from "react";
import type { Token } from "../../api/types";
import { formatPercent, toNumber } from "../../format";

export function probability(token: { logprob: Token["logprob"] }): number {
  return Math.exp(toNumber(token.logprob) ?? Number.NEGATIVE_INFINITY);
}

/** How surprising a token was, as the strength of its tint: none when certain, full at one in a thousand. */
function tint(token: Token): CSSProperties {
  const surprise = Math.min(1, -(toNumber(token.logprob) ?? 0) / Math.log(1000));
  return { "--surprise": `${Math.round(surprise * 62)}%` } as CSSProperties;
}

interface Props {
  tokens: Token[];
  chosen: number | null;
  /** The first tokens were forced: a person chose this branch. */
  forced: number;
  onChoose: (index: number | null) => void;
}

/** The text, each token tinted by how unlikely it was. One tab stop; arrows walk, Enter opens the alternatives. */
export function TokenText({ tokens, chosen, forced, onChoose }: Props) {
  const [at, setAt] = useState(0);
  const spans = useRef<(HTMLButtonElement | null)[]>([]);
  const focused = Math.min(at, tokens.length - 1);
  const onKey = (event: KeyboardEvent): void => {
    const next = { ArrowRight: focused + 1, ArrowLeft: focused - 1, Home: 0, End: tokens.length - 1 }[event.key];
    if (event.key === "Escape") onChoose(null);
    if (next === undefined || next < 0 || next >= tokens.length) return;
    event.preventDefault();
    setAt(next);
    spans.current[next]?.focus();
    if (chosen !== null) onChoose(next);
  };
  return (
    <span className="tokens" onKeyDown={onKey}>
      {tokens.map((token, index) => (
        <Fragment key={index}>
          <button
            ref={(element) => {
              spans.current[index] = element;
            }}
            type="button"
            tabIndex={index === focused ? 0 : -1}
            className={`token${index < forced ? " forced" : ""}`}
            style={tint(token)}
            aria-pressed={index === chosen}
            aria-label={`${token.text.trim() || visible(token.text)}, ${formatPercent(probability(token), 1)}`}
            title={formatPercent(probability(token), 1)}
            onClick={() => {
              setAt(index);
              onChoose(index === chosen ? null : index);
            }}
          >
            {standIn(token.text)}
          </button>
          {"\n".repeat(token.text.split("\n").length - 1)}
        </Fragment>
      ))}
    </span>
  );
}

interface AlternativesProps {
  token: Token;
  /** Takes the token that is to stand there instead. */
  onBranch: ((token: Token) => void) | null;
  onClose: () => void;
}

/** What the model might have said instead of a token. */
export function Alternatives({ token, onBranch, onClose }: AlternativesProps) {
  const box = useRef<HTMLDivElement>(null);
  useEffect(() => {
    box.current?.scrollIntoView({ block: "nearest" });
  }, [token]);
  const listed = token.alternatives ?? [];
  const options = listed.some((option) => option.id === token.id) ? listed : [...listed, token];
  return (
    <div className="card alternatives" ref={box} role="group" aria-label={`Instead of “${token.text}”`}>
      <div className="spread">
        <h3>
          Instead of <q>{visible(token.text)}</q>
        </h3>
        <button type="button" className="linklike" onClick={onClose}>
          close
        </button>
      </div>
      <ul>
        {options
          .toSorted((a, b) => probability(b) - probability(a))
          .map((option) => (
            <li key={option.id}>
              <button
                type="button"
                disabled={!onBranch || option.id === token.id}
                onClick={() => onBranch?.({ ...option, alternatives: options })}
              >
                <code>{visible(option.text)}</code>
                <span className="bar">
                  <i style={{ width: `${probability(option) * 100}%` }} />
                </span>
                <span className="num">{formatPercent(probability(option), 1)}</span>
                <span className="dim">{option.id === token.id ? "said" : onBranch ? "branch" : ""}</span>
              </button>
            </li>
          ))}
      </ul>
    </div>
  );
}

/** A token that shows nothing (part of a character, a line's end) still needs a place to be chosen at. */
function standIn(text: string): string {
  return text === "" ? "▫" : text.replaceAll("\n", "⏎");
}

/** Spaces and line ends made visible. */
function visible(text: string): string {
  return text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "∅";
}

/** Words of a caption with how sure the model was of each: the least of its tokens' probabilities. */
export function wordsOf(tokens: Token[]): { text: string; probability: number }[] {
  const words: { text: string; probability: number }[] = [];
  for (const token of tokens) {
    if (!token.text) continue;
    const last = words.at(-1);
    if (last && !/^\s/.test(token.text)) {
      last.text += token.text;
      last.probability = Math.min(last.probability, probability(token));
    } else words.push({ text: token.text.trim(), probability: probability(token) });
  }
  return words.filter((word) => word.text);
}
