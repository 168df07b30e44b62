"""`cellar`: models, predictions, generations, sessions and scoring from a terminal."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from cellar_client import credentials, top
from cellar_client.client import Client
from cellar_client.emissions import Emissions
from cellar_client.errors import CellarError
from cellar_client.surprisal import Surprisal

# Columns of a table that is not for a terminal.
WIDE = 100_000


def main(arguments: Sequence[str] | None = None) -> int:
    """0: done; 1: refused, with the reason in one line on standard error; 2: wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except CellarError as error:
        print(f"cellar: {error.name}: {error.message}", file=sys.stderr)
    except (OSError, ValueError) as error:
        print(f"cellar: {error}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cellar", description=__doc__)
    parser.add_argument("--version", action="version", version=f"cellar {version('cellar-serving')}")
    where = os.environ.get("CELLAR_SERVER", "127.0.0.1:50051")
    server_help = "HOST:PORT, or several by commas (default: CELLAR_SERVER, else 127.0.0.1:50051)"
    parser.add_argument("--server", default=where, help=server_help)
    credentials.add_arguments(parser)
    # before or behind the command
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--server", default=argparse.SUPPRESS, help=server_help)
    credentials.add_arguments(common, default=argparse.SUPPRESS)
    shown = argparse.ArgumentParser(add_help=False)
    shown.add_argument("--json", action="store_true", help="print JSON")
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")

    models = verbs.add_parser("models", parents=[common, shown], help="list the server's models, load or unload one")
    models.add_argument("verb", nargs="?", choices=["list", "load", "unload"], default="list")
    models.add_argument("name", nargs="?")
    models.add_argument("--model-version", type=int, default=0, help="unload this version only")
    models.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help="unload: for its sessions to close")
    models.add_argument("--force-reason", default="", help="unload: end the last sessions, and tell them this")
    models.set_defaults(run=_models)

    predict = verbs.add_parser("predict", parents=[common, shown], help="answer whole sequences")
    predict.add_argument("model")
    predict.add_argument("text", nargs="*", help="texts, or one step's numbers by commas")
    predict.add_argument("--input", type=Path, help="CSV of steps (one sequence), or - for standard input")
    predict.set_defaults(run=_predict)

    generate = verbs.add_parser("generate", parents=[common, shown], help="generate from a condition")
    generate.add_argument("model")
    generate.add_argument("condition", nargs="?", default="", help="a prompt, a sentence, a dialogue act, a name")
    generate.add_argument("--seed", type=int, help="the same seed gives the same output (default: a new one)")
    generate.add_argument("--max-steps", type=int, default=0, metavar="N", help="most emissions (default: the model's)")
    generate.add_argument(
        "--temperature", type=float, metavar="T", help="divides the logits; 0: greedy (default: the model's)"
    )
    generate.add_argument(
        "--top-k", type=int, metavar="K", help="draw among the K likeliest; 0: all (default: the model's)"
    )
    generate.add_argument(
        "--top-p", type=float, metavar="P", help="draw among the likeliest that reach P; 0: all (default: the model's)"
    )
    generate.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end behind it; repeatable")
    generate.set_defaults(run=_generate)

    surprisal = verbs.add_parser(
        "surprisal", parents=[common, shown], help="score each character of a text from standard input as it arrives"
    )
    surprisal.add_argument("model")
    surprisal.set_defaults(run=_surprisal)

    sessions = verbs.add_parser("sessions", parents=[common, shown], help="list open sessions, or close one")
    sessions.add_argument("verb", nargs="?", choices=["list", "close"], default="list")
    sessions.add_argument("id", nargs="?")
    sessions.add_argument("--model", default="")
    sessions.add_argument("--all", action="store_true", help="list: those of all callers, where one may see them")
    sessions.set_defaults(run=_sessions)

    health = verbs.add_parser(
        "health", parents=[common], help="0 where the server serves, or one of its models, else 1"
    )
    health.add_argument("model", nargs="?", default="", help="a model (default: the server with all of its models)")
    health.add_argument("--timeout", type=float, default=2.0, metavar="SECONDS")
    health.set_defaults(run=_health)

    watching = verbs.add_parser("top", parents=[common], help="watch what models and servers do")
    top.add_arguments(watching)
    watching.set_defaults(run=lambda options: top.run(options, partial(_watched, options)))

    scoring = verbs.add_parser("score", parents=[common], help="score a file")
    try:
        from cellar_client import score, tables
    except ModuleNotFoundError:
        scoring.set_defaults(run=_no_score)
    else:
        score.add_arguments(scoring)

        def run(options: argparse.Namespace) -> int:
            try:
                return score.run(options)
            except tables.TableError as error:
                raise ValueError(str(error)) from None

        scoring.set_defaults(run=run)
    return parser


def _no_score(options: argparse.Namespace) -> int:
    print("cellar: scoring needs pyarrow: pip install 'cellar-serving[score]'", file=sys.stderr)
    return 1


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)  # whole lines: they are read by a program, or kept
    console.print(table)


def _client(options: argparse.Namespace) -> Client:
    """To the servers of `--server`, as the caller that the flags and the environment say."""
    return Client(options.server.split(","), **credentials.from_arguments(vars(options)))


def _watched(options: argparse.Namespace, address: str) -> Client:
    """A client of one server that asks once, as the same caller."""
    return Client(address, timeout=top.PATIENCE_S, **credentials.from_arguments(vars(options)))


def _health(options: argparse.Namespace) -> int:
    with _client(options) as client:
        is_serving = client.is_serving(options.model, timeout=options.timeout)
    print("SERVING" if is_serving else "NOT_SERVING")
    return 0 if is_serving else 1


def _models(options: argparse.Namespace) -> int:
    if options.verb != "list":
        return _change_models(options)
    with _client(options) as client:
        models = client.models()
    if options.json:
        keys = ("name", "version", "mode", "description", "architecture", "labels", "state_size", "counters")
        print(json.dumps([{**{k: getattr(m, k) for k in keys}, "error": m.error and str(m.error)} for m in models]))
        return 0
    rows = [
        (
            m.name,
            m.version,
            "broken" if m.error else m.mode,
            m.architecture,
            m.error.message if m.error else m.description,
        )
        for m in models
    ]
    _table(("MODEL", "VERSION", "MODE", "NETWORK", "DESCRIPTION"), rows)
    return 0


def _change_models(options: argparse.Namespace) -> int:
    if not options.name:
        raise ValueError(f"which model is to be {options.verb}ed?")
    with _client(options) as client:
        if options.verb == "load":
            versions = client.load(options.name)
            print(json.dumps(versions) if options.json else f"{options.name}: versions {versions} are served")
            return 0
        ended = client.unload(
            options.name, options.model_version, wait_s=options.wait, force_reason=options.force_reason
        )
    print(json.dumps({"sessions_ended": ended}) if options.json else f"{options.name}: {ended} sessions were ended")
    return 0


def _predict(options: argparse.Namespace) -> int:
    with _client(options) as client:
        info = client.model(options.model)
        if options.input is not None:
            text = sys.stdin.read() if str(options.input) == "-" else options.input.read_text("utf-8")
            inputs: list[Any] = [text.strip()] if info.is_text else [_steps(text)]
        else:
            inputs = list(options.text)
            if not info.is_text:
                inputs = [_step(each) for each in inputs]
        if not inputs:
            raise ValueError("nothing to predict: give texts, numbers or --input")
        answers = client.predict_many(options.model, inputs)
    for each, answer in zip(inputs, answers, strict=True):
        if isinstance(answer, CellarError):
            raise answer
        _show(each if info.is_text else "", answer, info.labels, options.json)
    return 0


def _step(text: str) -> np.ndarray:
    """Numbers by commas; ValueError."""
    try:
        return np.array([float(value) for value in text.split(",")])
    except ValueError:
        raise ValueError(f"{text!r} is not one step's numbers by commas") from None


def _steps(text: str) -> np.ndarray:
    """CSV of numbers, with or without a line of names."""
    lines = [line.split(",") for line in text.strip().splitlines()]
    try:
        return np.array(lines, np.float64)
    except ValueError:
        return np.array(lines[1:], np.float64)


def _show(given: str, answer: Emissions, labels: Sequence[str], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"label": answer.label if labels else None, "outputs": np.asarray(answer).tolist()}))
    elif labels:
        print(f"{answer.label}\t{float(np.asarray(answer).reshape(-1, len(labels))[-1].max()):.3f}\t{given}".rstrip())
    else:
        for emission in np.asarray(answer).reshape(len(answer), -1):
            print(",".join(f"{v:g}" for v in emission))


def _generate(options: argparse.Namespace) -> int:
    with _client(options) as client:
        generation = client.generate(
            options.model,
            options.condition,
            seed=options.seed,
            max_steps=options.max_steps,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            stop=options.stop,
        )
        tokens = []
        for token in generation:
            tokens.append(asdict(token))
            if not options.json:
                print(token.text, end="", flush=True)
        if options.json:
            text, seed, finish = generation.text, generation.seed, generation.finish
            print(json.dumps({"text": text, "seed": seed, "finish": finish, "tokens": tokens}))
        else:
            print()
    return 0


def _surprisal(options: argparse.Namespace) -> int:
    total = count = 0.0
    with _client(options) as client, client.session(options.model) as session:
        reader = Surprisal(session, client.model(options.model))
        stdin: Any = sys.stdin.buffer
        while data := stdin.read1(4096):
            for character, nats in reader.take(data):
                total, count = total + nats, count + 1
                print(
                    json.dumps({"character": character, "nats": nats}) if options.json else f"{nats:.3f}\t{character!r}"
                )
            sys.stdout.flush()
    print(f"{total / max(count, 1):.4f} nats a character, {count:.0f} characters", file=sys.stderr)
    return 0


def _sessions(options: argparse.Namespace) -> int:
    with _client(options) as client:
        if options.verb == "close":
            if not options.id:
                raise ValueError("which session? cellar sessions close ID")
            closed = client.close_session(options.id)
            print(json.dumps(asdict(closed)) if options.json else f"closed {closed.id} at position {closed.position}")
            return 0
        sessions = client.sessions(options.model, all_callers=options.all)
    if options.json:
        print(json.dumps([asdict(session) for session in sessions]))
        return 0
    columns = ("SESSION", "MODEL", "POSITION", "AGE", "IDLE", *(["CALLER"] if options.all else []))
    rows = [(s.id, s.model, s.position, f"{s.age_s:.0f} s", f"{s.idle_s:.0f} s", s.caller) for s in sessions]
    _table(columns, [row[: len(columns)] for row in rows])
    return 0


if __name__ == "__main__":
    sys.exit(main())
