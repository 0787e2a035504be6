"""The `reta` command: parsing and printing only."""

from __future__ import annotations

import functools
import inspect
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro
from rich.logging import RichHandler

from reta import __version__, progress
from reta.cli.lists import evaluations, methods, presets
from reta.cli.making import adopt, distill, plan, scan, squeeze
from reta.cli.measuring import compare, demo, evaluate, train
from reta.cli.sharing import export, gallery, push
from reta.cli.terminal import say
from reta.cli.upkeep import bench, report, unlock, verify
from reta.config import Config, preset
from reta.errors import Interrupted, MemoryLimitError, RetaError, out_of_memory
from reta.interruption import stopping_on_signals

COMMANDS: dict[str, Callable[..., Any]] = {
    "distill": distill,
    "squeeze": squeeze,
    "plan": plan,
    "train": train,
    "evaluate": evaluate,
    "evaluations": evaluations,
    "compare": compare,
    "report": report,
    "gallery": gallery,
    "export": export,
    "push": push,
    "verify": verify,
    "unlock": unlock,
    "scan": scan,
    "methods": methods,
    "presets": presets,
    "adopt": adopt,
    "demo": demo,
    "bench": bench,
}


def _commands(arguments: Sequence[str]) -> dict[str, Callable[..., Any]]:
    """Return the commands; where a preset is named, their settings begin with it."""
    words = [word for word in arguments if word == "--preset" or word.startswith("--preset=")]
    if not words:
        return COMMANDS
    following = list(arguments)[list(arguments).index(words[-1]) + 1 :]
    name = words[-1].partition("=")[2] or (following[0] if following else "")
    base = preset(name)
    return {word: _beginning_with(command, base) for word, command in COMMANDS.items()}


def _beginning_with(command: Callable[..., Any], base: Config) -> Callable[..., Any]:
    """Return a command whose settings, if it has any, default to a preset's."""
    signature = inspect.signature(command)
    if "config" not in signature.parameters:
        return command

    @functools.wraps(command)
    def begun(*args: Any, **kwargs: Any) -> Any:
        return command(*args, **kwargs)

    given = signature.parameters["config"].replace(default=base)
    parameters = [given if p.name == "config" else p for p in signature.parameters.values()]
    begun.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return begun


def _fail(message: str) -> None:
    progress.console.print("error:", style="bold red", end=" ")
    progress.console.print(message, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; errors a user can act on are one message and an exit code."""
    # Read by OpenMP when a command first imports torch: threads that wait by spinning make
    # everything some ten times slower as soon as another program wants the same cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.basicConfig(
        level=logging.INFO,
        format="%(message)s",
        handlers=[RichHandler(console=progress.console, show_path=False, show_time=False)],
    )
    progress.show_progress(True)
    if list(arguments or sys.argv[1:]) == ["--version"]:
        say(f"reta {__version__}")
        return
    try:
        with stopping_on_signals():
            tyro.extras.subcommand_cli_from_dict(
                _commands(sys.argv[1:] if arguments is None else arguments),
                args=arguments,
                prog="reta",
                description=_DESCRIPTION,
                config=(tyro.conf.DisallowNone,),
            )
    except RetaError as error:
        _fail(str(error))
        sys.exit(error.exit_code)
    except (RuntimeError, MemoryError) as error:  # torch has an error of its own only on a GPU
        if not out_of_memory(error):
            raise
        _fail("out of memory: try a lower --images-per-pass or --image-size, then continue")
        sys.exit(MemoryLimitError.exit_code)
    except Interrupted as stopped:
        progress.console.print(str(stopped))
        sys.exit(stopped.exit_code)


_DESCRIPTION = """\
Dataset distillation: turn a large set of labelled images into a few synthetic images per class.

  reta demo                          the whole thing on handwritten digits
  reta distill ./photos --ipc 10     distil a folder with one sub-folder per class
  reta train runs/photos-reta-ipc10  train models on the distilled set alone

An interrupted command continues when it is run again. Exit codes: 0 done, 2 usage, 3 data or
damage, 4 diverged, 5 disk, 6 units given up, 7 memory, 130 SIGINT, 143 SIGTERM.
"""
