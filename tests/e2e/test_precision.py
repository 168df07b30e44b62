"""int8 beside float32, served by real processes."""

from __future__ import annotations

import cellar_client
import numpy as np
import pytest

from benchmarks import samples
from benchmarks.serving import Served, served


def test_int8_is_served_near_float32_and_steps_equal_the_whole(client: cellar_client.Client, server: Served) -> None:
    hours = samples.hours()[:64]
    exact = np.asarray(client.predict("forecast", hours)).reshape(-1)
    with served(extra=["--precision", "int8"]) as running, cellar_client.Client(running.address) as other:
        whole = np.asarray(other.predict("forecast", hours)).reshape(-1)
        with other.session("forecast") as session:
            steps = np.concatenate([np.asarray(session.step(hour)).reshape(-1) for hour in hours])
            blob = session.export()
        assert np.array_equal(steps, whole)
        difference = np.abs(whole - exact).max() / np.abs(exact).max()
        assert 0 < difference < 0.02
        images, truth = samples.digits()
        answers = other.predict_many("digits", [image[None] for image in images])
        assert np.mean([str(a.label) == str(b) for a, b in zip(answers, truth, strict=True)]) > 0.9
    with pytest.raises(cellar_client.CellarError, match="other weights"):
        client.import_session(blob)
