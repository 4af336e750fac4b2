"""The main program of `separate`: run `answer(job)` of a script within limits, and print its value as JSON.

It imports nothing of this project. The limits are set after the imports of the script, so that they are of its work.
"""

from __future__ import annotations

import json
import runpy
import sys
from typing import Any


def set_limits(seconds: int | None, memory: int | None) -> None:
    """Limit this process to more seconds of the processor, and on Linux to more bytes, than it has used so far."""
    try:
        import resource
    except ImportError:  # Windows
        return

    def limit(kind: int, value: int) -> None:
        most = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (value if most == resource.RLIM_INFINITY else min(value, most), most))

    limit(resource.RLIMIT_CORE, 0)
    if seconds is not None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + seconds)
    if memory is not None and sys.platform == "linux":
        with open("/proc/self/statm", encoding="ascii") as stream:
            pages = int(stream.read().split()[0])
        limit(resource.RLIMIT_AS, pages * resource.getpagesize() + memory)


def main() -> None:
    request: dict[str, Any] = json.load(sys.stdin)
    answer = runpy.run_path(sys.argv[1])["answer"]
    set_limits(request["seconds"], request["memory"])
    try:
        found = {"answer": answer(request["job"])}
    except MemoryError:
        found = {"memory": True}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
