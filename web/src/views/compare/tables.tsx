import { useState } from "react";
import { Switch } from "@mantine/core";
import { formatDuration, formatValue, metricName, toNumber } from "../../format";
import type { Compared } from "./lines";

/** Where each run stands, and how far from the first one. */
export function Results({ runs }: { runs: Compared[] }) {
  const best = (run: Compared, metric: string): number | null =>
    run.detail.best?.metric === metric ? toNumber(run.detail.best.value) : null;
  const metrics = [...new Set(runs.flatMap(({ detail }) => (detail.best ? [detail.best.metric] : [])))];
  const rows: { name: string; values: (number | null)[]; show: (value: number | null) => string }[] = [
    ...metrics.map((metric) => ({
      name: `best ${metricName(metric)}`,
      values: runs.map((run) => best(run, metric)),
      show: formatValue,
    })),
    { name: "last loss", values: runs.map(({ detail }) => toNumber(detail.last.loss)), show: formatValue },
    { name: "steps", values: runs.map(({ detail }) => detail.step), show: formatValue },
    { name: "rate", values: runs.map(({ detail }) => toNumber(detail.rate)), show: formatValue },
    { name: "time", values: runs.map(({ detail }) => detail.elapsed), show: formatDuration },
    { name: "parameters", values: runs.map(({ detail }) => toNumber(detail.start?.parameters)), show: formatValue },
  ];
  return (
    <section aria-label="Results">
      <h2>Results</h2>
      <div className="card scroll-x" tabIndex={0} role="region" aria-label="Results table">
        <table className="plain">
          <Head runs={runs} first="" right />
          <tbody>
            {rows.map(({ name, values, show }) => (
              <tr key={name}>
                <th scope="row">{name}</th>
                {values.map((value, index) => (
                  <td key={runs[index]?.detail.id} className="right">
                    {show(value)}
                    {index > 0 && <Delta value={value} baseline={values[0] ?? null} />}
                  </td>
                ))}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </section>
  );
}

function Delta({ value, baseline }: { value: number | null; baseline: number | null }) {
  if (value === null || baseline === null || !Number.isFinite(value - baseline) || baseline === 0) return null;
  const share = (value - baseline) / Math.abs(baseline);
  if (Math.abs(share) < 0.0005) return <div className="dim">=</div>;
  return <div className="dim">{`${share > 0 ? "+" : "−"}${Math.abs(share * 100).toFixed(1)} %`}</div>;
}

export function ChangedSettings({ runs }: { runs: Compared[] }) {
  const [all, setAll] = useState(false);
  const configs = runs.map(({ detail }) => detail.config);
  const names = [...new Set(configs.flatMap((config) => Object.keys(config)))].sort();
  const text = (value: unknown): string =>
    value === undefined
      ? "–"
      : value === null
        ? "unset"
        : typeof value === "object"
          ? JSON.stringify(value)
          : String(value);
  const differs = (name: string): boolean => new Set(configs.map((config) => text(config[name]))).size > 1;
  const shown = all ? names : names.filter(differs);
  return (
    <section aria-label="Settings">
      <div className="spread">
        <h2>{all ? "All settings" : "Settings that differ"}</h2>
        <Switch label="All settings" checked={all} onChange={() => setAll(!all)} />
      </div>
      {!shown.length ? (
        <p className="dim">Every setting is the same.</p>
      ) : (
        <div className="card scroll-x" tabIndex={0} role="region" aria-label="Settings table">
          <table className="plain">
            <Head runs={runs} first="Setting" right={false} />
            <tbody>
              {shown.map((name) => (
                <tr key={name} className={differs(name) ? "differs" : undefined}>
                  <th scope="row">{name.replaceAll("_", " ")}</th>
                  {configs.map((config, index) => (
                    <td key={runs[index]?.detail.id} className="num">
                      {text(config[name])}
                    </td>
                  ))}
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </section>
  );
}

function Head({ runs, first, right }: { runs: Compared[]; first: string; right: boolean }) {
  return (
    <thead>
      <tr>
        <th>{first || <span className="hidden">Measure</span>}</th>
        {runs.map(({ detail, color }) => (
          <th key={detail.id} className={right ? "right" : undefined}>
            <i className="swatch" style={{ background: `var(${color})` }} />
            {detail.id}
          </th>
        ))}
      </tr>
    </thead>
  );
}
