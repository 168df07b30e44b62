"""`cellar-models study gradients` and `cellar-models compare NAME...`: measured, and written into docs/."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from cellar_models.data import DataChanged, DataMissing, data_folder
from cellar_models.recurrent import CELLS
from cellar_models.training import training_numbers
from cellar_models.verify import VerifyError

VERBS = ("study", "compare")


def main(arguments: list[str], models: dict[str, str], module_of: Callable[[str], ModuleType]) -> int:
    """0: written; 1: refused, with one line on standard error; models, module_of: of the zoo."""
    parser = argparse.ArgumentParser(prog="cellar-models", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    studying = verbs.add_parser("study", help="gradients through time, adding and copying: docs/why-lstm.md")
    studying.add_argument("what", choices=["gradients"])
    studying.add_argument("--quick", action="store_true", help="tiny sizes, in seconds: to see that it runs")
    studying.add_argument("--resume", action="store_true", help="go on from findings.json, which is kept as it comes")
    studying.add_argument("--page", action="store_true", help="only write the page again from findings.json")
    studying.add_argument("--zoo", type=Path, default=Path("models/zoo"), help="whose models are drawn")
    comparing = verbs.add_parser("compare", help="a model's network with each kind of cell: docs/cells.md")
    comparing.add_argument("names", nargs="*", metavar="NAME", help="none: the page only")
    comparing.add_argument("--data", type=Path, default=data_folder(), help="folder of the data sets (CELLAR_DATA)")
    comparing.add_argument("--epochs", type=int, default=None, help="at most so many")
    comparing.add_argument("--cells", default=",".join(CELLS), help="kinds, by commas")
    comparing.add_argument("--seeds", type=int, default=1, help="trainings of each cell, from the seeds 1, 2, ...")
    for each in (studying, comparing):
        each.add_argument("--docs", type=Path, default=Path("docs"), help="where pages are written")
    options = parser.parse_args(arguments)
    if options.verb == "compare" and not set(options.names) <= set(models):
        comparing.error(f"NAME is one of {', '.join(sorted(models))}")
    try:
        with training_numbers():
            return _study(options) if options.verb == "study" else _compare(options, module_of)
    except (DataMissing, DataChanged, VerifyError, FileNotFoundError) as error:
        print(f"cellar-models: {error}", file=sys.stderr)
        return 1


def _say(text: str) -> None:
    print(text, flush=True)


def _study(options: argparse.Namespace) -> int:
    from cellar_models.lessons.page import read_findings, write_findings, write_page
    from cellar_models.lessons.study import QUICK, Findings, Plan, study

    docs = options.docs
    found = read_findings(docs) if options.page or options.resume else Findings(QUICK if options.quick else Plan())

    def keep(text: str) -> None:
        write_findings(found, docs)
        _say(text)

    if not options.page:
        study(found, keep)
    for path in write_page(found, docs, options.zoo):
        _say(f"wrote {path}")
    _say(f"measured in {found.minutes:g} minutes of one thread")
    return 0


def _compare(options: argparse.Namespace, module_of: Callable[[str], ModuleType]) -> int:
    from cellar_models.lessons.cells import keep, write_cells
    from cellar_models.lessons.trials import run_trial

    seeds = list(range(1, options.seeds + 1))
    for name in options.names:
        kinds = options.cells.split(",")
        trials = [run_trial(name, module_of(name), options.data, kind, seeds, options.epochs, _say) for kind in kinds]
        _say(f"wrote {keep(trials, options.docs)}")
    _say(f"wrote {write_cells(options.docs)}")
    return 0
