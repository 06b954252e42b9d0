import { useDebouncedValue } from "@mantine/hooks";
import { keepPreviousData, useQuery } from "@tanstack/react-query";
import { send } from "../../api/client";
import type { Check } from "../../api/types";

const SETTLE_MS = 350;

interface CheckBody {
  verb: string;
  config: Record<string, unknown>;
  name?: string;
}

/** Whether the server would take these settings, what it says of each field, and the command that means the same.
 * `asked`: the settings that it speaks of, which may have been changed since. */
export function useCheck(body: CheckBody) {
  const [settled] = useDebouncedValue(body, SETTLE_MS);
  return useQuery({
    queryKey: ["check", settled],
    queryFn: async ({ signal }) => ({
      ...(await send<Check>("POST", "/api/runs/check", settled, signal)),
      asked: settled.config,
    }),
    placeholderData: keepPreviousData,
    staleTime: 60_000,
  });
}
