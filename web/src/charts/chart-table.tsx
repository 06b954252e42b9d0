import { useEffect, useState, type KeyboardEvent, type Ref } from "react";
import { formatDuration, formatInteger, formatValue } from "../format";
import type { ChartModel } from "./chart";
import type { PlotLine } from "./content";
import { measured, rowsToTell } from "./export";

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

/**
 * The chart in numbers: evenly chosen rows of what is in the window, and every one that is not finite. Of a long run
 * only the first row of each drawn bucket is known by its x; what is not finite within a bucket is told as near there.
 */
export function ChartTable({ title, model, xName, timeOrigin, window, ref, onKeyDown }: Props) {
  const [content, setContent] = useState(() => model.content());
  useEffect(() => {
    setContent(model.content());
    const timer = setInterval(() => setContent({ ...model.content() }), 2_000);
    return () => clearInterval(timer);
  }, [model]);
  const { rows, near, points } = rowsToTell(content, window, ROWS);
  const values = content.lines.map(measured);
  const cell = (line: PlotLine, index: number, x: number): number | null =>
    values[index]?.get(x) ?? line.parts.flatMap(({ marks }) => marks).find((mark) => mark.x === x)?.value ?? null;
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
        <caption className="hidden">{`${title}: ${rows.length} of ${points} points`}</caption>
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
          {rows.toReversed().map((x) => (
            <tr key={x}>
              <td className="num">
                {near.has(x) && "near "}
                {timeOrigin === null
                  ? Number.isInteger(x)
                    ? formatInteger(x)
                    : formatValue(x)
                  : formatDuration(x - timeOrigin)}
              </td>
              {content.lines.map((line, index) => (
                <td key={line.id} className="right">
                  {formatValue(cell(line, index, x))}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
