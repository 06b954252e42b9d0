import { useEffect, useState, type KeyboardEvent, type Ref } from "react";
import { formatDuration, formatInteger, formatValue } from "../format";
import type { ChartModel } from "./chart";
import type { PlotLine } from "./content";
import { bisect, nearest } from "./track";

const ROWS = 200;

interface Props {
  title: string;
  model: ChartModel;
  xName: string;
  timeOrigin: number | null;
  window: [number, number] | null;
  ref: Ref<HTMLDivElement>;
  onKeyDown: (event: KeyboardEvent) => void;
}

/** The chart in numbers: evenly chosen rows of what is in the window, and every one that is not finite. */
export function ChartTable({ title, model, xName, timeOrigin, window, ref, onKeyDown }: Props) {
  const [content, setContent] = useState(() => model.content());
  useEffect(() => {
    setContent(model.content());
    const timer = setInterval(() => setContent({ ...model.content() }), 2_000);
    return () => clearInterval(timer);
  }, [model]);
  const [from, to] = window ?? content.range ?? [0, 0];
  const xs = [
    ...new Set(
      content.lines.flatMap((line) =>
        line.parts.flatMap(({ raw }) => raw.x.slice(bisect(raw.x, from - 1e-9) + 1, bisect(raw.x, to) + 1)),
      ),
    ),
  ].sort((a, b) => a - b);
  const odd = new Set(
    content.lines.flatMap((line) => line.parts.flatMap(({ marks }) => marks.slice(0, ROWS).map((mark) => mark.x))),
  );
  const kept = xs.filter(
    (x, index) => odd.has(x) || index === xs.length - 1 || index % Math.ceil(xs.length / ROWS) === 0,
  );
  return (
    <div
      ref={ref}
      className="chart-table"
      tabIndex={0}
      role="region"
      aria-label={`${title} as a table`}
      onKeyDown={onKeyDown}
    >
      <table className="plain">
        <caption className="hidden">{`${title}: ${kept.length} of ${xs.length} points`}</caption>
        <thead>
          <tr>
            <th>{xName}</th>
            {content.lines.map((line) => (
              <th key={line.id} className="right">
                {line.label}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {kept.toReversed().map((x) => (
            <tr key={x}>
              <td className="num">
                {timeOrigin === null
                  ? Number.isInteger(x)
                    ? formatInteger(x)
                    : formatValue(x)
                  : formatDuration(x - timeOrigin)}
              </td>
              {content.lines.map((line) => (
                <td key={line.id} className="right">
                  {formatValue(exact(line, x))}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function exact(line: PlotLine, x: number): number | null {
  for (const { raw, marks } of line.parts.toReversed()) {
    const mark = marks.find((candidate) => candidate.x === x);
    if (mark) return mark.value;
    const at = nearest(raw.x, x);
    if (at >= 0 && raw.x[at] === x) return raw.y[at] as number;
  }
  return null;
}
