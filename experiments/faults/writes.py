"""Each call that writes below a run's folder refused by the system, one after the other; and the clock set back."""

import ctypes
import errno
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys

from experiments.faults import forked
from experiments.faults.small_runs import STATE, difference
from pixel_ddpg.errors import UserError

RUN = "pixel_ddpg.run"
SHORT = [*STATE, "frames=400", "eval.every=300", "eval.video_size=16"]
LASTING = {errno.ENOSPC: (False, True), errno.EIO: (False, True), errno.EROFS: (True,)}
DAY = 86400


def measure(folder: pathlib.Path, every: int = 1) -> dict:
    """In a process of its own, which the C library's calls of this folder reach by way of refuse_writes.c."""
    library = folder / "refuse_writes.so"
    source = pathlib.Path(__file__).with_name("refuse_writes.c")
    try:
        built = subprocess.run(
            ["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], capture_output=True, text=True
        )
    except FileNotFoundError:
        raise UserError("parts=[refused writes] needs a C compiler, cc: `apt-get install gcc`", code=1) from None
    if built.returncode:
        raise UserError(f"{source.name} cannot be built: {built.stderr.strip().splitlines()[0]}", code=1)
    words = [sys.executable, "-m", "experiments.faults.writes", str(library), str(folder), str(every)]
    made = subprocess.run(words, env=os.environ | {"LD_PRELOAD": str(library)}, stdout=subprocess.PIPE, text=True)
    if made.returncode:
        raise UserError("parts=[refused writes] has failed, see above", code=1)
    return json.loads(made.stdout)


def refuse(run_dir: pathlib.Path, at: int, error: int = 0, lasts: bool = False, clock: int = 0) -> None:
    """From now on, in this process."""
    os.environ |= {
        "FAULT_FOLDER": str(run_dir), "FAULT_AT": str(at), "FAULT_ERRNO": str(error), "FAULT_LASTS": str(int(lasts)),
        "FAULT_CLOCK": str(clock),
    }  # fmt: skip


def _measure(library: str, folder: pathlib.Path, every: int) -> dict:
    counter, count = ctypes.CDLL(library), folder / "count"
    whole, run_dir = folder / "whole", folder / "refused"
    forked.call(
        RUN, [*SHORT, f"run_dir={whole}"], folder,
        before=lambda: refuse(whole, 0), after=lambda: count.write_text(str(counter.fault_calls())),
        longest=forked.WHOLE_RUN,
    ).must_end_with(0)  # fmt: skip
    calls = int(count.read_text())
    tally = forked.Tally()

    def attempt(kind: str, **how) -> None:
        shutil.rmtree(run_dir, ignore_errors=True)
        words = [*SHORT, f"run_dir={run_dir}"]
        first = forked.call(RUN, words, folder, before=lambda: refuse(run_dir, **how), longest=forked.WHOLE_RUN)
        second = forked.call(RUN, words, folder, longest=forked.WHOLE_RUN)
        end = "the run finished" if first.code == 0 else "told in one line"
        complaint = first.complaint or second.complaint
        if not complaint:
            complaint = second.err.strip() if second.code else difference(whole, run_dir)
        tally.add(f"{kind} at call {how['at']}", f"{kind}, {end}", complaint)

    for error, at in itertools.product(LASTING, range(1, calls + 1, every)):
        for lasts in LASTING[error]:
            attempt(errno.errorcode[error] + " from then on" * lasts, at=at, error=error, lasts=lasts)
    for at in range(1, calls + 1, every * 10):
        attempt("the clock a day back", at=at, clock=DAY)
    return {"calls of a run": calls} | tally.row()


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3]))))
