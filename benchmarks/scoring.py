"""Files of sequences, and what scoring one costs the client in memory."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.network import NAME, WIDTH
from benchmarks.ratios import sequence_lengths


def write_sequences(path: Path, count: int) -> int:
    """A Parquet file of `count` sequences, a row a step: `sequence`, f0 to f63; its number of rows."""
    lengths = sequence_lengths(count)
    rng = np.random.default_rng(1)
    names = ["sequence", *(f"f{i}" for i in range(WIDTH))]
    schema = pa.schema([(names[0], pa.int64()), *((name, pa.float32()) for name in names[1:])])
    with pq.ParquetWriter(path, schema) as writer:
        for at in range(0, count, 1000):
            ids = np.repeat(np.arange(at, min(at + 1000, count)), lengths[at : at + 1000])
            values = rng.standard_normal((WIDTH, len(ids)), np.float32)
            writer.write_table(pa.table([ids, *values], schema=schema))
    return int(lengths.sum())


def memory_of_scoring(address: str, source: Path, target: Path) -> int:
    """Peak resident bytes of `cellar score` over the file. RuntimeError where it fails."""
    command = [str(Path(sys.executable).parent / "cellar"), "score", "--server", address, "--model", NAME]
    command += ["--input", str(source), "--output", str(target), "--group-by", "sequence"]
    command += ["--features", ",".join(f"f{i}" for i in range(WIDTH))]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0
    # not from the process's own account at its end: that counts this process too, which it was forked from
    while process.poll() is None:
        peak = max(peak, _high_water_bytes(process.pid))
        time.sleep(0.02)
    if process.returncode:
        raise RuntimeError(f"cellar score ended with {process.returncode}")
    return peak


def _high_water_bytes(pid: int) -> int:
    """Peak resident size of a running process so far (Linux); 0 for one that is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
