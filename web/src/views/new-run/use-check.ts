import { keepPreviousData, useQuery } from "@tanstack/react-query";
import { useEffect, useState } from "react";
import { send } from "../../api/client";
import type { Check } from "../../api/types";

const SETTLE_MS = 350;

/** Whether the server would take these settings, what it says of each field, and the command that means the same. */
export function useCheck(body: unknown) {
  const [settled, setSettled] = useState(body);
  useEffect(() => {
    const timer = setTimeout(() => setSettled(body), SETTLE_MS);
    return () => clearTimeout(timer);
  }, [body]);
  return useQuery({
    queryKey: ["check", settled],
    queryFn: ({ signal }) => send<Check>("POST", "/api/runs/check", settled, signal),
    placeholderData: keepPreviousData,
    staleTime: 60_000,
  });
}
