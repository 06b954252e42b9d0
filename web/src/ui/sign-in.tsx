import { Button, TextInput } from "@mantine/core";
import { useQueryClient } from "@tanstack/react-query";
import { useState, type FormEvent } from "react";
import { send } from "../api/client";

/** Shown when the server does not know this browser: the printed address holds the token. */
export function SignIn({ onDone }: { onDone: () => void }) {
  const client = useQueryClient();
  const [problem, setProblem] = useState<string | null>(null);
  const submit = async (event: FormEvent<HTMLFormElement>): Promise<void> => {
    event.preventDefault();
    const entered = String(new FormData(event.currentTarget).get("token") ?? "").trim();
    const token = entered.match(/[?&]token=([^&]+)/)?.[1] ?? entered; // the whole printed address is welcome too
    try {
      await send("POST", "/api/session", { token });
      await client.invalidateQueries();
      onDone();
    } catch (error) {
      setProblem(error instanceof Error ? error.message : String(error));
    }
  };
  return (
    <form
      className="card"
      style={{ maxWidth: 460, margin: "12vh auto", padding: 24, display: "grid", gap: 12 }}
      onSubmit={submit}
    >
      <h1>This browser is not signed in</h1>
      <p className="dim">
        Open the address that <code>limner serve</code> printed, or paste it (or its token) here.
      </p>
      <TextInput
        name="token"
        label="Address or token"
        size="sm"
        error={problem}
        autoComplete="off"
        autoFocus
        required
      />
      <Button type="submit" size="sm">
        Sign in
      </Button>
    </form>
  );
}
