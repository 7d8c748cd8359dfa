"""Run a script with its arguments in a process that multiprocessing spawns."""

import multiprocessing
import runpy
import sys


def run(arguments: list[str]) -> None:
    """The script is the first of `arguments`."""
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=run, args=(sys.argv[1:],))
    process.start()
    process.join()
    sys.exit(process.exitcode)
