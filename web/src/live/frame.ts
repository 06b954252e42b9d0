// All drawing waits for a frame, and a frame takes only so much of it: the page stays smooth however fast events come.
const BUDGET_MS = 6;

type Draw = () => void;
const waiting = new Set<Draw>();
let asked = false;

/** Calls `draw` in a coming frame, once, however often it is asked for until then. */
export function onFrame(draw: Draw): void {
  waiting.add(draw);
  if (asked) return;
  asked = true;
  requestAnimationFrame(run);
}

export function cancelFrame(draw: Draw): void {
  waiting.delete(draw);
}

function run(): void {
  asked = false;
  const end = performance.now() + BUDGET_MS;
  for (const draw of waiting) {
    waiting.delete(draw);
    draw();
    if (performance.now() > end) break;
  }
  if (waiting.size && !asked) {
    asked = true;
    requestAnimationFrame(run);
  }
}
