"""The demo's figures: full runs for several seeds, and their medians.

    .venv/bin/python benchmarks/demo.py --seeds 42 43 44          # what docs/LOG.md reports; 4 to 6 minutes a seed
    .venv/bin/python benchmarks/demo.py --seeds 42 -- --steps 200 # what follows -- goes to `limner demo`
    .venv/bin/python benchmarks/demo.py --drawing                 # scenes drawn a second, one core
    .venv/bin/python benchmarks/demo.py --step-time               # milliseconds of a step in both parts of the run

Each run is a process of its own, as a person would start it, so that its time and memory are its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--drawing", action="store_true", help="only measure how fast scenes are drawn")
    parser.add_argument("--step-time", action="store_true", help="only measure how long a step takes")
    parser.add_argument("rest", nargs="*", help="further arguments for `limner demo`")
    arguments = parser.parse_args()
    if arguments.drawing:
        drawing()
        return
    if arguments.step_time:
        step_time(arguments.rest)
        return
    runs = []
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            command = ["limner", "demo", "--json", "--seed", str(seed), "--runs-dir", folder, *arguments.rest]
            began = time.perf_counter()
            done = subprocess.run([sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True, check=True)
            figures = json.loads(done.stdout) | {"seed": seed, "seconds": time.perf_counter() - began}
        print(json.dumps(figures), flush=True)
        runs.append(figures)
    names = [name for name, value in runs[0].items() if isinstance(value, float)]
    print(json.dumps({"median of": len(runs)} | {n: statistics.median(run[n] for run in runs) for n in names}))


def step_time(rest: list[str]) -> None:
    """Steps 51 to 200 where a quarter of the scenes is captioned, and where all are; each twice, in turn."""
    plain = ["--steps", "200", "--eval-steps", "0", "--save-steps", "0", "--test-scenes", "8"]
    for share in ("1", "0") * 2:
        with tempfile.TemporaryDirectory() as folder:
            command = ["limner", "demo", "--json", "--seeing-first", share, "--runs-dir", folder, *plain, *rest]
            subprocess.run([sys.executable, "-m", *command], stdout=subprocess.DEVNULL, check=True)
            (log,) = Path(folder).glob("*/events.jsonl")
            events = [json.loads(line) for line in log.read_text().splitlines()]
        steps = [sum(e["seconds"].values()) for e in events if e["type"] == "metrics" and e["step"] > 50]
        what = "first part" if share == "1" else "second part"
        print(f"{what}: {1e3 * statistics.median(steps):.1f} ms a step, mean {1e3 * statistics.mean(steps):.1f}")


def drawing() -> None:
    from limner.data.scenes import make_scene

    began, count = time.perf_counter(), 2000
    for index in range(count):
        scene = make_scene(index)
        scene.picture()
        scene.captions(1)
    print(f"{count / (time.perf_counter() - began):,.0f} scenes a second: composed, drawn, captioned once")


if __name__ == "__main__":
    main()
