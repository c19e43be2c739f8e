"""All benchmarks, one after the other, and a page of them.

    python -m benchmarks.run [--only TOPIC ...] [arguments of every script, such as --quick]

Each script is a module of this package that takes `--repeats`, `--quick` and `--output`; a new one is a name in
`SCRIPTS`. Results go to `benchmarks/results/latest`. A script that fails does not stop the others; the exit code is
then 1. A goal that is missed is no failure: the page says so.
"""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.page import RESULTS

# In the order of the page. What needs an accelerator is not here.
SCRIPTS = (
    "same_work",
    "trainer",
    "projector_only",
    "frozen_encoder",
    "accounting",
    "labelled_head",
    "loop_overhead",
    "compile",
    "batching",
    "loading",
    "scanning",
)


def main() -> int:
    """Run and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=SCRIPTS)
    options, others = parser.parse_known_args()
    if options.only == SCRIPTS:
        shutil.rmtree(RESULTS, ignore_errors=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    failed = [name for name in options.only if not ran(name, others)]
    drawn = subprocess.run([sys.executable, "-m", "benchmarks.page"], cwd=Path(__file__).parent.parent).returncode
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed or drawn else 0


def ran(name: str, arguments: list[str]) -> bool:
    """Run a script; whether it came to its end."""
    started = time.monotonic()
    command = [sys.executable, "-m", f"benchmarks.{name}", "--output", str(RESULTS / f"{name}.json"), *arguments]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent).returncode == 0
    print(f"{name}: {time.monotonic() - started:.0f} s\n", flush=True)
    return done


if __name__ == "__main__":
    sys.exit(main())
