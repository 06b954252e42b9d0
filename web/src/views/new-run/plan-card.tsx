import type { Plan } from "../../api/types";
import { formatBytes, formatCount, formatDuration, formatValue } from "../../format";
import { Facts } from "../../ui/pieces";
import { SteadyButton } from "../../ui/steady-button";

interface Props {
  plan: Plan | undefined;
  pending: boolean;
  disabled: boolean;
  onPlan: () => void;
}

/** Parameters, memory and time from a dry run: asked for, since it builds the model and takes a few seconds. */
export function PlanCard({ plan, pending, disabled, onPlan }: Props) {
  const facts = plan?.plan ? entries(plan.plan) : [];
  return (
    <section className="card" aria-label="Estimate">
      <div className="spread">
        <h2>Estimate</h2>
        <SteadyButton variant="default" off={pending || disabled} onClick={onPlan}>
          {pending ? "At work …" : plan ? "Again" : "Dry run"}
        </SteadyButton>
      </div>
      <div aria-live="polite">
        {!plan && <p className="dim">Parameters, memory and time to go, from a dry run of a few steps.</p>}
        {facts.length > 0 && <Facts items={facts} />}
        {plan && !plan.ok && <div className="notice bad">{plan.text || "The dry run failed."}</div>}
        {plan?.ok && facts.length === 0 && (
          <pre className="command" tabIndex={0}>
            {plan.text}
          </pre>
        )}
        {plan && <p className="dim num">The dry run took {formatDuration(plan.seconds)}.</p>}
      </div>
    </section>
  );
}

function entries(plan: Record<string, unknown>, prefix = ""): [string, string][] {
  return Object.entries(plan).flatMap(([key, value]): [string, string][] => {
    const name = prefix + key.replaceAll("_", " ");
    if (value !== null && typeof value === "object" && !Array.isArray(value))
      return entries(value as Record<string, unknown>, `${name} · `);
    return [[name, show(key, value)]];
  });
}

function show(key: string, value: unknown): string {
  if (typeof value !== "number") return value === null ? "–" : Array.isArray(value) ? value.join(", ") : String(value);
  if (/bytes|size_b/.test(key)) return formatBytes(value);
  if (key.endsWith("_mb")) return formatBytes(value * 2 ** 20);
  if (/seconds|eta/.test(key)) return formatDuration(value);
  return Number.isInteger(value) ? formatCount(value) : formatValue(value);
}

/** The number of optimizer steps that a dry run found. */
export function plannedSteps(plan: Plan | undefined): number | null {
  const steps = plan?.plan?.steps;
  return typeof steps === "number" ? steps : null;
}
