import { Button, SegmentedControl, TextInput } from "@mantine/core";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useEffect, useMemo, useState, type ReactNode } from "react";
import { useLocation } from "wouter";
import { ApiError, send } from "../../api/client";
import { corporaQuery, datasetsQuery, presetsQuery, runQuery, schemasQuery } from "../../api/queries";
import type { CatalogueEntry, Plan, Problem, RunSummary, SchemaNode } from "../../api/types";
import { Icon } from "../../ui/icons";
import { Failure, Waiting } from "../../ui/pieces";
import { copyCommand, say, sayError } from "../../ui/toast";
import { getText, isElsewhere, putText, useUrl } from "../../ui/url";
import { FieldInput } from "./field-input";
import { SECTIONS, fieldsOf, same, type Field, type Section as SectionName } from "./fields";
import { SchedulePreview } from "./schedule-preview";
import { scheduleOf } from "./schedule";
import { useCheck } from "./use-check";
import { PlanCard, plannedSteps } from "./plan-card";
import "./new-run.css";

/** In the order in which they are offered; others follow. */
const VERBS: Record<string, string> = { pretrain: "Pretrain a GPT", train: "Train a captioner", demo: "The demo" };

export default function NewRun() {
  const schemas = useQuery(schemasQuery);
  const [url, setUrl] = useUrl();
  /** What was chosen for each verb before a person turned to another one. */
  const [drafts, setDrafts] = useState<Record<string, { from: string | null; changes: string | null }>>({});
  const from = url.get("from");
  const model = useQuery({ ...runQuery(from ?? ""), enabled: from !== null });
  if (schemas.error) return <Failure error={schemas.error} what="The settings cannot be read." />;
  if (!schemas.data || (from !== null && model.isPending)) return <Waiting what="Reading the settings …" />;
  const known = Object.keys(VERBS);
  const place = (verb: string): number => (known.includes(verb) ? known.indexOf(verb) : known.length);
  const verbs = Object.keys(schemas.data).sort((a, b) => place(a) - place(b));
  const verb = url.get("verb") ?? model.data?.verb ?? verbs[0] ?? "";
  const schema = schemas.data[verb];
  if (!schema) return <p className="empty">This installation has no verb “{verb}” that makes runs.</p>;
  const given = model.data && model.data.verb === verb ? model.data.config : {};
  const choose = (next: string): void => {
    setDrafts({ ...drafts, [verb]: { from, changes: getText(url, "c") } });
    const { from: origin = null, changes = null } = drafts[next] ?? {};
    setUrl({ verb: next, from: origin, ...putText("c", changes) });
  };
  return (
    <>
      {model.error && from !== null && (
        <Failure error={model.error} what={`The settings of ${from} cannot be read: these are the defaults.`} />
      )}
      <Form key={`${verb}/${from}`} verb={verb} verbs={verbs} schema={schema} given={given} onVerb={choose} />
    </>
  );
}

interface FormProps {
  verb: string;
  verbs: string[];
  onVerb: (verb: string) => void;
  schema: SchemaNode;
  /** The settings of the run that this one is to be like. */
  given: Record<string, unknown>;
}

function Form({ verb, verbs, schema, given, onVerb }: FormProps) {
  const [url, setUrl] = useUrl();
  const [, navigate] = useLocation();
  const client = useQueryClient();
  const fields = useMemo(() => fieldsOf(schema), [schema]);
  const changes = useMemo(
    () => ({ ...differing(fields, schema, given), ...readChanges(getText(url, "c")) }),
    [fields, schema, given, url],
  );
  const name = url.get("name") ?? "";
  const [sought, setSought] = useState("");
  const [refused, setRefused] = useState<Problem[]>([]);
  const body = useMemo(() => ({ verb, config: changes, ...(name ? { name } : {}) }), [verb, changes, name]);
  const check = useCheck(body);
  const plan = useMutation({ mutationFn: () => send<Plan>("POST", "/api/runs/plan", body), onError: sayError });
  const start = useMutation({
    mutationFn: () => send<RunSummary>("POST", "/api/runs", body),
    onSuccess: (run) => {
      void client.invalidateQueries({ queryKey: ["runs"] });
      say(run.status === "queued" ? `${run.id} waits for its turn.` : `${run.id} begins.`);
      navigate(`/runs/${encodeURIComponent(run.id)}`);
    },
    onError: (error) => {
      setRefused(error instanceof ApiError ? error.problems : []);
      sayError(error);
    },
  });
  const set = (field: Field, value: unknown): void => {
    const next: Record<string, unknown> = { ...changes, [field.name]: value };
    if (same(value, field.fallback) && !(field.name in given)) delete next[field.name];
    setRefused([]);
    setUrl(putText("c", Object.keys(next).length ? JSON.stringify(next) : null));
  };
  const { asked = {}, config: answered } = check.data ?? {};
  // An answer is late by a moment: of what was changed since, it still tells the old value.
  const current = Object.entries(answered ?? {}).filter(([field]) => same(asked[field], changes[field]));
  const resolved = {
    ...Object.fromEntries(fields.map((field) => [field.name, field.fallback])),
    ...changes,
    ...Object.fromEntries(current),
  };
  const problems = refused.length ? refused : (check.data?.problems ?? []);
  const problemOf = (field: string): string | undefined =>
    problems.find((problem) => problem.field === `config.${field}`)?.message;
  const known = new Set(fields.map((field) => `config.${field.name}`));
  const general = problems.filter((problem) => !known.has(problem.field) && problem.field !== "name");
  return (
    <form
      className="new-run"
      onSubmit={(event) => {
        event.preventDefault();
        if (check.data?.valid !== false && !start.isPending) start.mutate();
      }}
      onKeyDown={(event) => {
        if (event.key !== "Enter" || !(event.target instanceof HTMLInputElement) || event.defaultPrevented) return;
        event.preventDefault(); // a run takes hours: Enter alone begins none
        if (event.ctrlKey || event.metaKey) event.currentTarget.requestSubmit();
      }}
    >
      <div className="form">
        <div className="spread">
          <h1>New run</h1>
          {verbs.length > 1 && (
            <SegmentedControl
              aria-label="What to train"
              value={verb}
              onChange={onVerb}
              data={verbs.map((value) => ({ value, label: VERBS[value] ?? value }))}
            />
          )}
        </div>
        {isElsewhere(url, "c") && (
          <div className="notice" role="alert">
            The settings of this address were kept in another tab.
          </div>
        )}
        <Presets
          verb={verb}
          changes={changes}
          onChoose={(config) => setUrl(putText("c", JSON.stringify({ ...changes, ...config })))}
        />
        <div className="row names">
          <TextInput
            label="Name"
            description="Its folder; unset: verb, data and date"
            value={name}
            onChange={(event) => {
              setRefused([]);
              setUrl({ name: event.currentTarget.value || null });
            }}
            error={problems.find((problem) => problem.field === "name")?.message}
            spellCheck={false}
          />
          <TextInput
            label="Find a setting"
            description="By its name or its meaning"
            value={sought}
            onChange={(event) => setSought(event.currentTarget.value)}
            leftSection={<Icon name="search" size={14} />}
          />
        </div>
        <Sections
          fields={fields}
          sought={sought}
          values={{ ...resolved, ...changes }}
          problemOf={problemOf}
          onChange={set}
        />
      </div>
      <aside>
        <section className="card" aria-label="Begin">
          {general.map((problem) => (
            <div key={problem.field + problem.message} className="notice bad" role="alert">
              {problem.message}
            </div>
          ))}
          {check.error && (
            <div className="notice bad" role="alert">
              {check.error.message}
            </div>
          )}
          <pre className="command" tabIndex={0} aria-label="The same as a command">
            {check.data?.command ?? `limner ${verb} …`}
          </pre>
          <div className="row">
            <Button type="submit" size="sm" title="Ctrl + Enter" loading={start.isPending} disabled={check.data?.valid === false}>
              Start
            </Button>
            <Button
              variant="default"
              size="sm"
              leftSection={<Icon name="copy" size={14} />}
              disabled={!check.data?.command}
              onClick={() => copyCommand(check.data?.command)}
            >
              Copy as command
            </Button>
          </div>
        </section>
        <PlanCard
          plan={plan.data}
          pending={plan.isPending}
          disabled={check.data?.valid === false}
          onPlan={() => plan.mutate()}
        />
        <SchedulePreview config={resolved} schedule={scheduleOf(resolved, plannedSteps(plan.data))} />
      </aside>
    </form>
  );
}

interface SectionsProps {
  fields: Field[];
  sought: string;
  values: Record<string, unknown>;
  problemOf: (field: string) => string | undefined;
  onChange: (field: Field, value: unknown) => void;
}

function Sections({ fields, sought, values, problemOf, onChange }: SectionsProps) {
  const { data: corpora } = useQuery(corporaQuery);
  const { data: datasets } = useQuery(datasetsQuery);
  const suggestions: Record<string, string[]> = {
    corpus: namesOf(corpora),
    dataset: namesOf(datasets),
  };
  const words = sought.toLowerCase().split(/\s+/).filter(Boolean);
  const matches = (field: Field): boolean =>
    words.every((word) => `${field.label} ${field.name} ${field.help}`.toLowerCase().includes(word));
  return (
    <>
      {SECTIONS.map((section) => {
        const own = fields.filter((field) => field.section === section && matches(field));
        const changed = own.filter((field) => !same(values[field.name], field.fallback)).length;
        const wrong = own.some((field) => problemOf(field.name));
        return (
          <Section
            key={section}
            name={section}
            count={`${own.length}${changed > 0 ? `, ${changed} changed` : ""}`}
            empty={!own.length}
            needed={own.length > 0 && (wrong || words.length > 0)}
          >
            {own.map((field) => (
              <FieldInput
                key={field.name}
                field={field}
                value={values[field.name]}
                problem={problemOf(field.name)}
                suggestions={suggestions[field.name] ?? []}
                onChange={(value) => onChange(field, value)}
              />
            ))}
          </Section>
        );
      })}
    </>
  );
}

/** Each once: a list of choices breaks over one that is there twice. */
function namesOf(entries: CatalogueEntry[] | undefined): string[] {
  return [...new Set(entries?.map((entry) => entry.name))];
}

interface SectionProps {
  name: SectionName;
  count: string;
  empty: boolean;
  /** Something in it is wrong or sought. */
  needed: boolean;
  children: ReactNode;
}

/** Opens by itself where it is needed, and is shut by hand only: a person may be at work in it. */
function Section({ name, count, empty, needed, children }: SectionProps) {
  const [open, setOpen] = useState(name === "Data" || name === "Optimization");
  useEffect(() => {
    if (needed) setOpen(true);
  }, [needed]);
  if (empty) return null;
  return (
    <details className="card" open={open} onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>
        {name} <span className="dim num">{count}</span>
      </summary>
      <div className="fields">{children}</div>
    </details>
  );
}

function Presets({
  verb,
  changes,
  onChoose,
}: {
  verb: string;
  changes: Record<string, unknown>;
  onChoose: (config: Record<string, unknown>) => void;
}) {
  const { data } = useQuery(presetsQuery);
  const own = data?.filter((preset) => preset.verb === verb) ?? [];
  if (!own.length) return null;
  const told = new Set(own.map((preset) => preset.description)).size > 1; // one text for all of them tells nothing
  const chosen = (config: Record<string, unknown>): boolean =>
    Object.entries(config).every(([key, value]) => same(changes[key], value));
  return (
    <div className="presets" role="group" aria-label="Presets">
      {own.map((preset) => (
        <button
          key={preset.name}
          type="button"
          aria-pressed={chosen(preset.config)}
          onClick={() => onChoose(preset.config)}
        >
          <b>{preset.label ?? preset.name}</b>
          <span>{told && preset.description}</span>
        </button>
      ))}
    </div>
  );
}

/** The settings of another run that are not the defaults. */
function differing(fields: Field[], schema: SchemaNode, given: Record<string, unknown>): Record<string, unknown> {
  const names = new Set([...fields.map((field) => field.name), "preset"]);
  return Object.fromEntries(
    Object.entries(given).filter(
      ([name, value]) => names.has(name) && !same(value, schema.properties?.[name]?.default),
    ),
  );
}

function readChanges(text: string | null): Record<string, unknown> {
  if (!text) return {};
  try {
    return JSON.parse(text) as Record<string, unknown>;
  } catch {
    return {}; // an address cut off in mid-word is an empty form, not a broken page
  }
}
