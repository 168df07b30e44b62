"""The whole of Cellar in one short run on real bundled input (`make demo`); needs no torch.

Exit status 0 when every check held, 1 with the failed check's line otherwise. Nothing is left running.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cellar_client
from rich.console import Console

from benchmarks.demo import modes, service
from benchmarks.demo.story import CheckError, Story
from benchmarks.serving import served
from benchmarks.wire import Wire


def tell(story: Story, folder: Path) -> None:
    """All chapters against a server of our own; CheckError where one does not hold."""
    with served() as server:
        story.say(f"cellar-server {server.address}, process {server.process.pid}")
        with cellar_client.Client(server.address) as client, Wire(server.address) as wire:
            chapters: list[Callable[[cellar_client.Client, Story], None]] = [
                modes.one_to_one,
                modes.many_to_one,
                modes.one_to_many,
                modes.many_to_many,
                modes.sound,
                modes.translation,
            ]
            for chapter in chapters:
                chapter(client, story)
            service.streaming(client, server, wire, story)
            service.scoring(server, folder, story)
        service.surviving(folder, story)
        story.chapter("10  the end")
        status = server.terminate()
        story.check(status == 0 and server.is_gone(), "the server drained, ended with 0 and is gone")


def main() -> int:
    console = Console(width=110)
    story = Story(console)
    started = time.perf_counter()
    folder = Path(tempfile.mkdtemp(prefix="cellar-demo-"))
    try:
        tell(story, folder)
    except CheckError as error:
        console.print(f"[red]FAILED[/red] {error}", highlight=False)
        return 1
    console.print()
    console.print(story.table())
    console.print(f"All checks held in {time.perf_counter() - started:.1f} s. Output: {folder}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
