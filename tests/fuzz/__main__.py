"""Coverage-guided fuzzing by atheris: `python -m tests.fuzz TARGET [--seconds N]` (`make fuzz` runs all targets).

What it found interesting is kept in the folder CELLAR_FUZZ_CORPUS, where one is named, and is begun with the next time.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", help="frames, states, generation_states, oip, manifests or graphs")
    parser.add_argument("--seconds", type=int, default=60)
    given = parser.parse_args()
    try:
        import atheris
    except ImportError:
        print("atheris is not installed: pip install atheris (Linux, Python 3.11 to 3.13)", file=sys.stderr)
        return 1
    with atheris.instrument_imports(include=["cellar_server"]):
        from tests.fuzz.targets import seeds
    known = seeds()
    if given.target not in known:
        parser.error(f"there is no target {given.target}; there are {', '.join(known)}")
    target, inputs = known[given.target]
    corpus = Path(os.environ.get("CELLAR_FUZZ_CORPUS") or tempfile.mkdtemp(prefix="cellar-fuzz-")) / given.target
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(inputs):
        (corpus / f"seed-{number}").write_bytes(data)
    limits = [f"-max_total_time={given.seconds}", "-timeout=20", "-rss_limit_mb=4096", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *limits, str(corpus)], target)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
