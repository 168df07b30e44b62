"""The processes: stopping with work in flight, and scoring a file."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import cellar_client
import pyarrow.parquet as pq

from benchmarks import samples
from benchmarks.serving import served


def test_sigterm_answers_what_was_accepted_and_ends_with_zero():
    with served() as server, cellar_client.Client(server.address) as client:
        hours = samples.hours()
        client.predict("forecast", hours[:2])
        answers: list[object] = []
        asked = threading.Event()

        def ask() -> None:
            asked.set()
            try:
                answers.append(client.predict_many("forecast", [hours] * 16))
            except cellar_client.CellarError as error:
                answers.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        asked.wait()
        assert server.terminate() == 0
        thread.join(30)
        assert not thread.is_alive()
        assert len(answers) == 1
        assert server.is_gone()


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
    assert [set(labels[i : i + 1]) <= set(map(str, scored[i].values())) for i in range(50)] == [True] * 50
