import { Button, type ButtonProps, type ElementProps } from "@mantine/core";

interface Props extends ButtonProps, ElementProps<"button", keyof ButtonProps> {
  /** There is nothing for it to do. */
  off: boolean;
}

/** A button that is off without being disabled: a disabled one drops the focus that a person has on it. */
export function SteadyButton({ off, onClick, ...rest }: Props) {
  return (
    <Button
      {...rest}
      aria-disabled={off}
      data-disabled={off || undefined}
      onClick={(event) => (off ? event.preventDefault() : onClick?.(event))}
    />
  );
}
