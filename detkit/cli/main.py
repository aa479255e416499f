"""The entry point `detkit`: says what there is without importing torch, then hands over to the command."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import NoReturn

from detkit.__about__ import __version__
from detkit.cli.help import BENCHMARKS, COMMANDS, help_text
from detkit.errors import ConfigError, DetkitError
from detkit.files import path_error
from detkit.signals import SIGNALS

LIGHTNING = ("fit", "validate", "test", "predict")


def program() -> NoReturn:
    """The program itself: as `main`, but nothing stops it any more once its command has ended.

    The interpreter takes seconds to end after a command that has imported torch; a signal in them would lose the exit
    code, and what is not printed yet.
    """
    code = main(restore=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def main(args: Sequence[str] | None = None, restore: bool = True) -> int:
    """Runs the program in a process that may go on.

    Args:
        args: the arguments after the program's name; `sys.argv[1:]` by default.
        restore: whether the handlers of signals are those of before at the end.

    Returns:
        The exit code: 0; 1 where `detkit doctor` found what would stop a run; 2 for what the user can mend (one
        message, no traceback); 3 where `detkit predict` has skipped images that cannot be read; 130 after Ctrl-C, 143
        after SIGTERM.
    """
    args = list(sys.argv[1:] if args is None else args)
    command = args[0] if args else "--help"
    if command in ("--help", "-h", "help"):
        print(help_text(), end="")
        return 0
    if command in ("--version", "-V", "version"):
        print(f"detkit {__version__}")
        return 0
    if command not in COMMANDS:
        close = get_close_matches(command, COMMANDS, n=1)
        meant = f" Did you mean `detkit {close[0]}`?" if close else ""
        what = "option before a command" if command.startswith("-") else "command"
        known = f"There are: {', '.join(COMMANDS)}; `detkit --help` explains them."
        return _fail(f"Unknown {what} {command!r}.{meant}\n{known}")
    SIGNALS.received, SIGNALS.waits = None, False
    earlier = SIGNALS.install()
    try:
        return _run(command, args[1:])
    except KeyboardInterrupt as interrupt:
        print(f"\nStopped. {str(interrupt) or 'The same command begins again.'}", file=sys.stderr)
        return 128 + (SIGNALS.received or signal.SIGINT)
    finally:
        SIGNALS.waits = True  # everything is done: a signal changes nothing any more
        for number, handler in earlier.items() if restore else ():
            signal.signal(number, handler)


def _run(command: str, args: list[str]) -> int:
    """Run a command; the exit code unless it was stopped."""
    try:
        return _dispatch(command, args)
    except DetkitError as error:
        return _fail(str(error))
    except (MemoryError, RuntimeError) as error:
        from detkit.system import memory_message

        if (message := memory_message(error)) is None:
            raise
        return _fail(message)
    except BrokenPipeError:
        # The reader of our output has gone (`detkit test ... | head`): nothing is left to say.
        sys.stderr.close()
        return 1
    except OSError as error:
        if (told := path_error(error)) is None:
            raise
        return _fail(str(told))


def _dispatch(command: str, args: list[str]) -> int:
    """Run a command; its exit code."""
    if command == "benchmark":
        if not args or args[0] in ("--help", "-h"):
            lines = (f"  {name:<12} {what}" for name, what in BENCHMARKS.items())
            print("usage: detkit benchmark NAME [options]\n", *lines, sep="\n")
            return 0
        if args[0] not in BENCHMARKS:
            raise ConfigError(f"there is no benchmark {args[0]!r}; there are: {', '.join(BENCHMARKS)}")
        command, args = f"benchmark {args[0]}", args[1:]
    if command not in LIGHTNING:
        from detkit.cli.tools import run_tool

        return run_tool(command, args)
    from detkit.cli.noise import quiet
    from detkit.cli.resume import prepare

    arguments, start = prepare(command, args)  # what is wrong is said before torch is imported
    if command == "predict":
        from detkit.cli.exported import predict_exported

        if (files := predict_exported(arguments, start)) is not None:
            return files.exit_code
    quiet()
    from detkit.cli.lightning_cli import execute

    return execute(command, arguments, start).exit_code


def _fail(message: str) -> int:
    print(f"detkit: {message}", file=sys.stderr)
    return 2
