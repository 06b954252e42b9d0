import { useQueryClient } from "@tanstack/react-query";
import { useEffect } from "react";
import { healthQuery } from "../api/queries";

/** Asks for the server's health when something has gone wrong and when it is well again, not at the next beat only. */
export function useDoubt(failing: boolean): void {
  const client = useQueryClient();
  useEffect(() => {
    if (!failing) return;
    const ask = (): void => void client.invalidateQueries({ queryKey: healthQuery.queryKey });
    ask();
    return ask;
  }, [failing, client]);
}
