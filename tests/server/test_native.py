"""The native transport by itself: under sanitizers, over a million calls, and its parser on any bytes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "server" / "native"


def _missing() -> str:
    absent = [program for program in ("cmake", "pkg-config", "c++") if shutil.which(program) is None]
    if absent:
        return f"{', '.join(absent)}: not installed"
    return "" if not subprocess.run(["pkg-config", "--exists", "grpc++"]).returncode else "libgrpc++-dev: not installed"


pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(_missing()), reason=_missing())]


def build(folder: Path, *flags: str) -> Path:
    for command in (
        ["-S", str(SOURCE), "-B", str(folder), "-DMODULE=OFF", "-DCHECKS=ON", *flags],
        ["--build", str(folder)],
    ):
        made = subprocess.run(["cmake", *command], capture_output=True, text=True)
        assert made.returncode == 0, made.stdout + made.stderr
    return folder


def stress(folder: Path, calls: int, seed: int, timeout_s: float, callers: int = 4) -> dict[str, float]:
    options = f"ignore_noninstrumented_modules=1 suppressions={SOURCE / 'tsan.supp'}"
    ran = subprocess.run(
        [str(folder / "stress"), str(calls), str(callers), str(seed)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, "TSAN_OPTIONS": options},
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr[-5000:]
    assert "ERROR" not in ran.stderr
    assert "WARNING: ThreadSanitizer" not in ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_calls_cut_at_random_points_under_sanitizers(tmp_path: Path, sanitizer: str) -> None:
    folder = build(tmp_path, f"-DSANITIZE={sanitizer}", "-DCMAKE_BUILD_TYPE=RelWithDebInfo")
    most = 10_000 if sanitizer != "thread" else 3000
    # a caller alone too: the poller, which stays awake for it, sends its answers
    for seed, callers, calls in ((1, 4, most), (2, 4, most), (3, 1, most // 3)):
        said = stress(folder, calls, seed, 280, callers)
        assert said["wrong"] == said["live"] == 0
        assert said["rows"] > calls // 3


@pytest.mark.timeout(1200)
def test_a_million_calls_leave_nothing(tmp_path: Path) -> None:
    said = stress(build(tmp_path), 1_000_000, 3, 1100)
    assert said["wrong"] == said["live"] == 0
    # over the last 750,000 of them; gRPC's own pools and the callers' connections are part of it
    assert said["grown_bytes"] < 16e6


@pytest.mark.timeout(300)
@pytest.mark.skipif(shutil.which("clang++") is None, reason="clang++ is not installed: libFuzzer is a part of it")
def test_any_bytes_are_a_row_or_none(tmp_path: Path) -> None:
    folder = build(tmp_path, "-DCMAKE_CXX_COMPILER=clang++")
    (tmp_path / "seeds").mkdir()
    for name, text in {
        "frame": "121c0803120801000000000000011a01002a0b0801120201401a0478787878",
        "step": "0a02696410071a0a08011202014012001a0478787878",
        "predict": "0a016d10011a0101220c0801120201401a047878787828013005",
    }.items():
        (tmp_path / "seeds" / name).write_bytes(bytes.fromhex(text))
    ran = subprocess.run(
        [str(folder / "fuzz"), "-max_total_time=60", "-max_len=512", str(tmp_path / "seeds")],
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert ran.returncode == 0, ran.stderr[-5000:]
