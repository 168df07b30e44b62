"""The benchmark's two graphs are the same network."""

import numpy as np
import onnxruntime

from benchmarks import network


def test_the_entry_with_its_packed_row_equals_the_bare_network(tmp_path):
    folder = network.write_entry(tmp_path / "zoo")
    network.write_ceiling(tmp_path / "ceiling.onnx")
    packed = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    bare = onnxruntime.InferenceSession(str(tmp_path / "ceiling.onnx"), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(2)
    x = rng.standard_normal((3, 5, network.WIDTH)).astype(np.float32)
    state = rng.standard_normal((3, network.STATE_SIZE)).astype(np.float32)
    y, row = packed.run(None, {"x": x, "state": state})
    parts = {p: np.ascontiguousarray(v)[None] for p, v in zip(network.PARTS, np.split(state, 4, axis=1), strict=True)}
    yt, *nexts = bare.run(None, {"xt": np.ascontiguousarray(x.transpose(1, 0, 2)), **parts})
    assert np.array_equal(y, yt.transpose(1, 0, 2))
    assert np.array_equal(row, np.concatenate([n[0] for n in nexts], axis=1))
