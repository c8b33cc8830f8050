"""The command line that all peers share: `wc|sort|grep INPUT OUTPUT [PATTERN]`.

A peer says how it starts and which function does which work; what is printed is one line of JSON:
the seconds of the work alone, and those since the start of the process.
"""

import json
import os
import sys
import time

THREADS = 2

_BEGAN_IN_PYTHON = time.monotonic()


def _seconds_before_python():
    """How long the process had been there when this module was loaded."""
    with open("/proc/self/stat") as stat:
        # Behind the name, which may hold anything, the start is the twentieth field.
        start_ticks = int(stat.read().rsplit(")", 1)[1].split()[19])
    start = start_ticks / os.sysconf("SC_CLK_TCK")
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - start)


_BEFORE_PYTHON = _seconds_before_python()


def files_of(directory):
    """The files of a directory, as a pattern."""
    return os.path.join(directory, "piece-*")


def main(start, work):
    """Calls `start()`, and gives what it returns to the function of `work` that was asked for."""
    name, source, target, *rest = sys.argv[1:]
    engine = start()
    began = time.monotonic()
    work[name](engine, source, target, *rest)
    ended = time.monotonic()
    told = {
        "seconds": round(ended - began, 3),
        "seconds_with_start": round(ended - _BEGAN_IN_PYTHON + _BEFORE_PYTHON, 3),
    }
    print(json.dumps(told), flush=True)
