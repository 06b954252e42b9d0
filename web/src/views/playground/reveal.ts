/** On a telephone an answer would begin below the fold, as if nothing had been asked. */
export function reveal(output: HTMLElement | null): void {
  if (output && output.getBoundingClientRect().top > innerHeight * 0.7) output.scrollIntoView({ block: "start" });
}
