"""What an exported network's card says."""

from __future__ import annotations

from collections.abc import Sequence

from cellar_proto.v1.manifest_pb2 import Manifest

from cellar_models.own.forms import Form
from cellar_models.verify import Report

_FORMS = {
    Form.FOLDED: "one ONNX node for each recurrent layer",
    Form.LOOP: "an ONNX Scan over the steps (its cells are not plain layers)",
    Form.FED: "an ONNX Scan over the steps (what its cells gave is used elsewhere too)",
    Form.GIVEN: "an ONNX Scan over the steps (the network hands its state over)",
    Form.WHOLE: "whole sequences at once",
}


def card(manifest: Manifest, form: Form, notes: Sequence[str], report: Report) -> str:
    """CARD.md of an exported network."""
    parts = "\n".join(f"| {part.name} | {list(part.shape)} | {part.offset} |" for part in manifest.parts)
    listed = "\n".join(f"- {note[0].upper()}{note[1:]}." for note in notes)
    cuts, bits = ("", "") if manifest.is_whole_only else (" in cuts of 1 to 16 steps", " and every cut")
    return f"""# {manifest.name}
{manifest.description}

- Network: {manifest.architecture}; {manifest.num_parameters} parameters, {manifest.state_size} numbers of state.
- Data: {manifest.data or "not stated"}. Licence: {manifest.licence or "not stated"}.
- Run as: {_FORMS[form]}. ONNX opset {manifest.opset}.
- Difference from the network in PyTorch over whole sequences: {report.max_relative_error:.1e} of the largest
  output at most (bound {manifest.parity.tolerance:g}), at 1 to 256 rows{cuts}.
- The same bits at every number of rows{bits}: {report.is_bit_identical}.
{listed}

| state | shape | offset |
|---|---|---|
{parts}

Quality was not measured here: put the metric, its data and a baseline below.

Check this folder: `cellar-models validate FOLDER/{manifest.name}/{manifest.version}`
"""
