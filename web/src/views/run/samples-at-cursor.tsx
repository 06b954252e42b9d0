import { Link } from "wouter";
import { useCursorStep } from "../../charts/cursor";
import { formatInteger } from "../../format";
import { useRun } from "./context";
import { pictureUrl, stepBefore, useSamples } from "./sample-data";

const FEW = 6;

/** What the model said where the cursor stands: moves with it along the curves. */
export function SamplesAtCursor() {
  const { id, detail, cursor } = useRun();
  const { data } = useSamples();
  const asked = useCursorStep(cursor);
  if (data ? !data.rows.length : !detail.counts.sample) return null;
  const step = data ? stepBefore(data.steps, asked) : null;
  return (
    <section className="card at-cursor" aria-label="Samples at the cursor">
      <header className="spread">
        <h3>
          Samples <span className="dim num">at step {step === null ? "–" : formatInteger(step)}</span>
        </h3>
        <Link href={`/runs/${encodeURIComponent(id)}/samples${asked === null ? "" : `?step=${asked}`}`}>all</Link>
      </header>
      <ul>
        {data?.rows.slice(0, FEW).map((row) => {
          const at = stepBefore(
            [...row.at.keys()].sort((a, b) => a - b),
            asked,
          );
          const sample = at === null ? undefined : row.at.get(at);
          return (
            <li key={row.probe}>
              {row.image && <img src={pictureUrl(id, row.image)} alt="" width="44" height="44" loading="lazy" />}
              <p>
                {row.prompt && <span className="prompt">{row.prompt} </span>}
                {sample?.text ?? "–"}
                {row.image && row.references[0] && <span className="reference">{row.references[0]}</span>}
              </p>
            </li>
          );
        })}
      </ul>
    </section>
  );
}
