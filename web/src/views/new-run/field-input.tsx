import { Select, Switch, TagsInput, TextInput } from "@mantine/core";
import { useCallback, useEffect, useId, useRef, useState } from "react";
import { parse, same, type Field } from "./fields";

interface Props {
  field: Field;
  value: unknown;
  problem: string | undefined;
  suggestions: string[];
  onChange: (value: unknown) => void;
}

export function FieldInput({ field, value, problem, suggestions, onChange }: Props) {
  const changed = !same(value, field.fallback);
  return (
    <div className={`field${changed ? " changed" : ""}`} data-field={field.name}>
      <Control field={field} value={value} problem={problem} suggestions={suggestions} onChange={onChange} />
      {changed && (
        <button
          type="button"
          className="linklike undo"
          aria-label={`Reset ${field.label}`}
          onClick={() => onChange(field.fallback)}
        >
          reset to {field.fallback === null || field.fallback === undefined ? "unset" : show(field.fallback)}
        </button>
      )}
    </div>
  );
}

function Control({ field, value, problem, suggestions, onChange }: Props) {
  const help = field.range ? `${field.help} (${field.range})` : field.help;
  const shared = { label: field.label, description: help, error: problem };
  if (field.kind === "boolean" && !field.nullable)
    return <Switch {...shared} checked={value === true} onChange={(event) => onChange(event.currentTarget.checked)} />;
  if (field.kind === "choice" || field.kind === "boolean") {
    const choices =
      field.kind === "boolean"
        ? [
            { value: "true", label: "yes" },
            { value: "false", label: "no" },
          ]
        : field.choices;
    return (
      <Select
        {...shared}
        data={choices}
        value={value === null || value === undefined ? null : String(value)}
        placeholder="unset"
        clearable={field.nullable}
        allowDeselect={field.nullable}
        onChange={(next) => onChange(next === null ? null : field.kind === "boolean" ? next === "true" : next)}
      />
    );
  }
  if (field.kind === "list") {
    const list = Array.isArray(value) ? value.map(String) : [];
    return (
      <TagsInput
        {...shared}
        data={field.choices.length ? field.choices : suggestions}
        value={list}
        placeholder={list.length ? "" : "Type and press Enter"}
        onChange={(next) =>
          onChange(field.numeric ? next.map((item) => (Number.isNaN(Number(item)) ? item : Number(item))) : next)
        }
      />
    );
  }
  return <TextControl field={field} value={value} problem={problem} suggestions={suggestions} onChange={onChange} />;
}

/** Keeps what is being typed as it is typed, whatever comes from elsewhere meanwhile; tells its value as JSON. */
function TextControl({ field, value, problem, suggestions, onChange }: Props) {
  const [text, setText] = useState(show(value));
  const list = useId();
  const input = useRef<HTMLInputElement>(null);
  const follow = useCallback(
    () => setText((held) => (same(parse(field, held), value) ? held : show(value))),
    [field, value],
  );
  useEffect(() => {
    if (document.activeElement !== input.current) follow();
  }, [follow]);
  const numeric = field.kind !== "text";
  return (
    <>
      <TextInput
        label={field.label}
        description={field.range ? `${field.help} (${field.range})` : field.help}
        error={problem}
        value={text}
        inputMode={numeric ? "decimal" : "text"}
        placeholder={field.nullable ? "unset" : ""}
        list={suggestions.length ? list : undefined}
        spellCheck={false}
        ref={input}
        onBlur={follow}
        onChange={(event) => {
          setText(event.currentTarget.value);
          onChange(parse(field, event.currentTarget.value));
        }}
      />
      {suggestions.length > 0 && (
        <datalist id={list}>
          {suggestions.map((suggestion) => (
            <option key={suggestion} value={suggestion} />
          ))}
        </datalist>
      )}
    </>
  );
}

function show(value: unknown): string {
  if (value === null || value === undefined) return "";
  if (Array.isArray(value)) return value.length ? value.join(", ") : "none";
  return String(value);
}
