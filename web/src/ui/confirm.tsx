import { Button, Modal } from "@mantine/core";
import type { ReactNode } from "react";

interface Props {
  /** Where it stays in place while it is shut, so that the focus goes back to what opened it. */
  opened?: boolean;
  title: string;
  /** What will happen. */
  children: ReactNode;
  /** What the buttons say, the harmless one first. */
  answers: [string, string];
  /** It cannot be undone: the harmless answer has the focus, and the other is red. */
  final?: boolean;
  pending?: boolean;
  onClose: () => void;
  onConfirm: () => void;
}

/** Asks before something is done. */
export function Confirm({ opened = true, title, children, answers, final = false, pending = false, ...on }: Props) {
  return (
    <Modal opened={opened} onClose={on.onClose} title={title} closeButtonProps={{ "aria-label": "Close" }}>
      <p>{children}</p>
      <div className="row" style={{ justifyContent: "flex-end", marginTop: 16 }}>
        <Button variant="default" onClick={on.onClose} data-autofocus={final || undefined}>
          {answers[0]}
        </Button>
        <Button
          {...(final ? { color: "red.8" } : {})}
          loading={pending}
          onClick={on.onConfirm}
          data-autofocus={!final || undefined}
        >
          {answers[1]}
        </Button>
      </div>
    </Modal>
  );
}
