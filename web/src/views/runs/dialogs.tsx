import { Button, Modal, TagsInput, Textarea } from "@mantine/core";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { runPath, send } from "../../api/client";
import { runQuery, runsQuery, usePatchRun } from "../../api/queries";
import type { RunSummary } from "../../api/types";
import { formatBytes } from "../../format";
import { Confirm } from "../../ui/confirm";
import { say, sayError } from "../../ui/toast";

interface Props {
  run: RunSummary;
  onClose: () => void;
}

export function LabelsDialog({ run, onClose }: Props) {
  const { data } = useQuery({ ...runsQuery, refetchInterval: false });
  const [tags, setTags] = useState(run.tags);
  const [note, setNote] = useState(run.note);
  const patch = usePatchRun();
  const known = [...new Set(data?.runs.flatMap((other) => other.tags))];
  return (
    <Modal opened onClose={onClose} title={`Tags and note of ${run.id}`} closeButtonProps={{ "aria-label": "Close" }}>
      <form
        style={{ display: "grid", gap: 12 }}
        onSubmit={(event) => {
          event.preventDefault();
          patch.mutate({ id: run.id, tags, note }, { onSuccess: onClose, onError: sayError });
        }}
      >
        <TagsInput
          label="Tags"
          data={known}
          value={tags}
          onChange={setTags}
          placeholder="Type and press Enter"
          data-autofocus
        />
        <Textarea
          label="Note"
          value={note}
          onChange={(event) => setNote(event.currentTarget.value)}
          autosize={false}
          rows={4}
        />
        <div className="row" style={{ justifyContent: "flex-end" }}>
          <Button variant="default" onClick={onClose}>
            Cancel
          </Button>
          <Button type="submit" loading={patch.isPending}>
            Keep
          </Button>
        </div>
      </form>
    </Modal>
  );
}

export function DeleteDialog({ run, onClose, onDeleted }: Props & { onDeleted?: () => void }) {
  const { data: detail } = useQuery(runQuery(run.id));
  const client = useQueryClient();
  const remove = useMutation({
    mutationFn: () => send<{ bytes: number }>("DELETE", runPath(run.id)),
    onSuccess: ({ bytes }) => {
      say(`Deleted ${run.id}: ${formatBytes(bytes)} freed.`);
      void client.invalidateQueries({ queryKey: ["runs"] });
      onClose();
      onDeleted?.();
    },
    onError: sayError,
  });
  return (
    <Confirm
      title={`Delete ${run.id}?`}
      answers={["Keep it", detail ? `Delete ${formatBytes(detail.bytes)}` : "Delete"]}
      final
      pending={remove.isPending}
      onClose={onClose}
      onConfirm={() => remove.mutate()}
    >
      The folder with its log, checkpoints, samples and model goes for good:{" "}
      <strong className="num">{detail ? formatBytes(detail.bytes) : "…"}</strong>.
    </Confirm>
  );
}
