"""The processes: stopping with work in flight, and scoring a file."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import cellar_client
import numpy as np
import pyarrow.parquet as pq

from benchmarks import samples
from benchmarks.serving import served
from benchmarks.wire import Wire


def test_sigterm_answers_what_was_accepted_and_ends_with_zero():
    with served() as server, cellar_client.Client(server.address) as client, Wire(server.address) as wire:
        hours = samples.hours()[:700]  # 300 of them are one message
        whole = np.asarray(client.predict("forecast", hours))
        before = wire.counters("forecast").runs
        answers: list[object] = []
        thread = threading.Thread(target=lambda: answers.extend(client.predict_many("forecast", [hours] * 300)))
        thread.start()
        deadline = time.monotonic() + 20
        while wire.counters("forecast").runs == before:
            assert time.monotonic() < deadline
        assert not answers  # in flight, all in one call
        assert server.terminate() == 0
        thread.join(30)
        assert not thread.is_alive()
        assert len(answers) == 300
        tolerance = 1e-5 * float(np.abs(whole).max())
        for answer in answers:
            np.testing.assert_allclose(np.asarray(answer), whole, rtol=0, atol=tolerance)
        assert server.is_gone()


CLIENT = """
import sys, cellar_client, numpy as np
from benchmarks import samples
client = cellar_client.Client(sys.argv[1])
session = client.session("forecast", id="of-a-killed-client")
for hour in samples.hours()[:1000]:
    session.step(hour)
    print(session.position, flush=True)
"""


def test_a_session_of_a_killed_client_goes_on_where_it_was(server, client, wire):
    before = wire.counters("forecast")
    victim = subprocess.Popen([sys.executable, "-c", CLIENT, server.address], stdout=subprocess.PIPE, text=True)
    assert victim.stdout is not None
    told = [int(victim.stdout.readline()) for _ in range(10)][-1]
    victim.kill()
    told = int((victim.stdout.read().split() or [told])[-1])
    victim.stdout.close()
    victim.wait()
    hours = samples.hours()
    with client.resume("of-a-killed-client") as session:
        # what was answered was taken in, and one more step may have been on its way
        at = session.position
        assert told <= at <= told + 1
        rest = np.asarray(session.step(hours[at : at + 5]))
    whole = np.asarray(client.predict("forecast", hours[: at + 5]))
    np.testing.assert_allclose(rest, whole[at:], rtol=0, atol=1e-5 * float(np.abs(whole).max()))
    after = wire.counters("forecast")
    assert after.steps - before.steps == (at + 5) + (at + 5)


def test_score_keeps_every_row_in_order(server, tmp_path: Path):
    target = tmp_path / "scored.parquet"
    command = [str(Path(sys.executable).parent / "cellar"), "score", "--server", server.address]
    command += ["--model", "sentiment", "--input", str(samples.sentences_file()), "--output", str(target)]
    done = subprocess.run([*command, "--text", "text"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    scored = pq.read_table(target).to_pylist()
    source = [json.loads(line) for line in samples.sentences_file().read_text().splitlines()]
    assert len(scored) == len(source) >= 1200
    with cellar_client.Client(server.address) as client:
        labels = [answer.label for answer in client.predict_many("sentiment", [row["text"] for row in source[:50]])]
    assert [row["predicted"] for row in scored[:50]] == labels
    assert [row["text"] for row in scored] == [row["text"] for row in source]
    assert {row["error"] for row in scored} == {None}
