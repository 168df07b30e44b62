"""What a zoo model's card says, and what the terminal says of the same."""

from __future__ import annotations

import re
from typing import Any

from cellar_models.training import Result
from cellar_models.variants import HEADING
from cellar_models.verify import Report, VerifyError

_TRAINED = re.compile(r"^Reproduce \(seed (?P<seed>\d+); (?P<trained>.+)\):\n\n    .+\n", re.MULTILINE)
_VERDICT = re.compile(r"^It (beats|does \*\*not\*\* beat) its naive baseline\.\n", re.MULTILINE)


def card(name: str, result: Result, saved: dict[str, Any]) -> str:
    """The card's text, with places for what the manifest and the verification say. saved: its `how`, where it has one,
    is what these weights' training had that the command has not."""
    rows = "\n".join(
        [f"| **{k}** | **{v:.4f}** |" for k, v in result.metrics.items()]
        + [f"| {k} | {v:.4f} |" for k, v in result.more.items()]
        + [f"| baseline: {k} | {v:.4f} |" for k, v in result.baselines.items()]
    )
    verdict = "It beats" if result.is_better else "It does **not** beat"
    seed = f" --seed {int(saved['seed'])}" if saved["seed"] != 1 else ""
    return f"""# {name}
{{manifest.description}}

- Network: {{manifest.architecture}}; {{manifest.num_parameters}} parameters, {{manifest.state_size}} numbers of state.
- Weights: matrices rounded to half precision and stored so; computed with in float32, as all measures here were.
- Data: {{manifest.data}}. Licence: {{manifest.licence}}.
- Parity with the float64 equations: {{report.max_relative_error:.1e}} of the largest output at most (bound 1e-5);
  same bits at every number of rows and every cut: {{report.is_bit_identical}}.
- ONNX opset {{manifest.opset}}; one step of one row: {{report.ms_per_step:.3f}} ms (ONNX Runtime, one thread, the
  fastest of many runs on a shared machine).

| measure ({result.unit}) | value |
|---|---|
{rows}

{result.notes}
{verdict} its naive baseline.

Reproduce (seed {int(saved["seed"])}; {saved.get("trained") or _trained(saved)}):

    cellar-models train {name}{seed} && cellar-models export {name}
{saved.get("how", "")}"""


def _trained(saved: dict[str, Any]) -> str:
    # runs of before CPU time was kept hold what the clock on the wall said
    clock = saved.get("clock", "by the clock, beside other work,")
    return f"{saved['seconds']:.0f} s {clock} on one thread when this one was trained"


def training_of(text: str) -> dict[str, Any]:
    """What an artefact's card tells of its weights' training, as `card` takes it: seed, trained, how. VerifyError where
    it tells nothing."""
    said = _TRAINED.search(text)
    verdict = _VERDICT.search(text)
    if said is None or verdict is None:
        raise VerifyError("the card does not say how its weights were trained")
    parts = [text[verdict.end() : said.start()].strip(), text[said.end() :].split(HEADING)[0].strip()]
    how = "".join(f"\n{part}\n" for part in parts if part)
    return {"seed": int(said["seed"]), "trained": said["trained"], "how": how.replace("{", "{{").replace("}", "}}")}


def beside(exact: Result, int8: Result) -> str:
    """The measures of two precisions side by side, as in a card."""
    rows = [(k, v, int8.metrics[k]) for k, v in exact.metrics.items()]
    rows += [(k, v, int8.more[k]) for k, v in exact.more.items()]
    head = f"| measure ({exact.unit}) | float32 | int8 |\n|---|---|---|\n"
    return head + "\n".join(f"| {k} | {v:.4f} | {other:.4f} |" for k, v, other in rows)


def table(result: Result) -> str:
    """An evaluation for the terminal."""
    rows = [
        *result.metrics.items(),
        *result.more.items(),
        *((f"baseline: {k}", v) for k, v in result.baselines.items()),
    ]
    verdict = "better than the naive baseline" if result.is_better else "NOT better than the naive baseline"
    return "\n".join([f"{name:40} {value:.4f}" for name, value in rows] + [f"({result.unit}) {verdict}", result.notes])


def findings(report: Report) -> str:
    """A verification for the terminal."""
    lines = [f"{form:24} {difference:.1e}" for form, difference in report.differences.items()]
    bits = (
        "the same bits at all rows and cuts"
        if report.is_bit_identical
        else f"bits agree from {report.min_rows} rows and {report.min_steps} steps on"
    )
    return "\n".join([*lines, bits])
