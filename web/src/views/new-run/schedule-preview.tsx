import { COLORS } from "../../charts/groups";
import { formatInteger, formatValue } from "../../format";
import { lrScale, peaks, type Schedule } from "./schedule";

const WIDTH = 320;
const HEIGHT = 96;

/** The learning rates of the run to come. */
export function SchedulePreview({
  config,
  schedule,
}: {
  config: Record<string, unknown>;
  schedule: Schedule & { known: boolean };
}) {
  const rates = peaks(config);
  if (!rates.length) return null;
  const most = Math.max(...rates.map(({ rate }) => rate)) || 1; // a rate that is being typed is 0 for a while
  const line = (rate: number): string =>
    Array.from({ length: 121 }, (_, i) => {
      const step = Math.round((i / 120) * (schedule.total - 1));
      const y = HEIGHT - 2 - ((lrScale(step, schedule) * rate) / most) * (HEIGHT - 8);
      return `${i ? "L" : "M"}${((i / 120) * WIDTH).toFixed(1)} ${y.toFixed(1)}`;
    }).join("");
  const words = `${schedule.kind}, warm-up ${formatInteger(schedule.warmup)} of ${schedule.known ? `${formatInteger(schedule.total)} steps` : "a run of unknown length, drawn as 1,000 steps"}`;
  return (
    <section className="card" aria-label="Learning rate">
      <h2>Learning rate</h2>
      <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} role="img" aria-label={`Learning rate: ${words}`} className="schedule">
        <path d={`M0 ${HEIGHT - 1.5}H${WIDTH}`} stroke="var(--line-2)" />
        {rates.map(({ name, rate }, index) => (
          <path
            key={name}
            d={line(rate)}
            fill="none"
            stroke={`var(${COLORS[index % COLORS.length]})`}
            strokeWidth="1.75"
          />
        ))}
      </svg>
      <p className="legend">
        {rates.map(({ name, rate }, index) => (
          <span key={name}>
            <i style={{ background: `var(${COLORS[index % COLORS.length]})` }} /> {name}{" "}
            <b className="num">{formatValue(rate)}</b>
          </span>
        ))}
      </p>
      <p className="dim">
        {words}; at the end {formatValue(schedule.kind === "constant" ? 1 : schedule.floor)} of the peak.
      </p>
    </section>
  );
}
