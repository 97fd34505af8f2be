"""The command `sned`: which commands there are, and how an error becomes a message and an exit code.

May import all of sned; the modules of commands are light, and import their jobs when they run.
"""

from __future__ import annotations

import errno
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from sned import __version__
from sned.cli import classify, heal, logs, measure, pack, prune, read, run, together
from sned.cli.flags import MethodCommand
from sned.cli.terminal import Terminal, prepare_streams
from sned.errors import ConfigError, SnedError

# Read when torch is imported, which is later. Threads that spin while they wait slow a busy machine manyfold.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

INTERRUPTED, USAGE, NOT_WRITTEN, FAILED = 130, 2, 8, 1

app = typer.Typer(
    name="sned",
    help="Prune large language models, and get back models that load and run.",
    epilog="`sned COMMAND --help` tells more, with examples. Start with: sned demo",
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)

_PRUNE, _LOOK, _MEASURE, _STORE = "Prune", "Look", "Measure", "Store"


def _register(run: Callable[..., Any], name: str, panel: str, examples: Sequence[str], **settings: Any) -> None:
    epilog = "\n\n".join(["Examples:", *(f"    {example}" for example in examples)])
    app.command(name, epilog=epilog, rich_help_panel=panel, **settings)(run)


_register(prune.prune, "prune", _PRUNE, prune.PRUNE_EXAMPLES, cls=MethodCommand)
_register(prune.plan, "plan", _PRUNE, prune.PLAN_EXAMPLES, cls=MethodCommand)
_register(prune.apply, "apply", _PRUNE, prune.APPLY_EXAMPLES)
_register(prune.import_, "import", _PRUNE, prune.IMPORT_EXAMPLES)
_register(heal.heal, "heal", _PRUNE, heal.HEAL_EXAMPLES)
_register(classify.classify, "classify", _PRUNE, classify.CLASSIFY_EXAMPLES)
_register(run.run, "run", _PRUNE, run.RUN_EXAMPLES)
_register(prune.demo, "demo", _PRUNE, prune.DEMO_EXAMPLES)
_register(read.show, "show", _LOOK, read.SHOW_EXAMPLES)
_register(read.diff, "diff", _LOOK, read.DIFF_EXAMPLES)
_register(measure.inspect, "inspect", _LOOK, measure.INSPECT_EXAMPLES)
_register(measure.scan, "scan", _LOOK, measure.SCAN_EXAMPLES)
_register(read.methods, "methods", _LOOK, read.METHODS_EXAMPLES)
_register(measure.evaluate, "eval", _MEASURE, measure.EVAL_EXAMPLES)
_register(logs.stability, "stability", _MEASURE, logs.STABILITY_EXAMPLES)
_register(measure.bench, "bench", _MEASURE, measure.BENCH_EXAMPLES)
_register(read.report, "report", _MEASURE, read.REPORT_EXAMPLES)
_register(pack.pack, "pack", _STORE, pack.PACK_EXAMPLES)
_register(pack.unpack, "unpack", _STORE, pack.UNPACK_EXAMPLES)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sned {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", metavar="", callback=_print_version, is_eager=True, help="Say which sned this is."),
    ] = False,
) -> None:
    if together.several() and ctx.invoked_subcommand not in together.COMMANDS:
        raise ConfigError(
            f"sned {ctx.invoked_subcommand} runs in one process, and a launcher has started several",
            hint=f"start it without the launcher; in several run: {', '.join(together.COMMANDS)}",
        )


def main(args: Sequence[str] | None = None) -> int:
    """Run one command line, `sys.argv` by default, and return its exit code."""
    typed = list(sys.argv[1:] if args is None else args)
    prepare_streams()
    terminal = Terminal(shlex.join(["sned", *typed]))
    try:
        try:
            code = _run(typed, terminal)
        finally:
            terminal.close()
    except BrokenPipeError:
        # whoever read us has gone; without a target the interpreter's own last flush cannot fail either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    return code


def _run(typed: list[str], terminal: Terminal) -> int:
    command = typer.main.get_command(app)
    try:
        code = command.main(typed, prog_name="sned", standalone_mode=False, obj=terminal)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        return _explain(error, terminal)
    if code == INTERRUPTED:
        terminal.err.print()
        terminal.say("interrupted", f"{terminal.after_interrupt}. No half-written result was left.", "yellow")
    return code if isinstance(code, int) else 0


def _explain(error: Exception, terminal: Terminal) -> int:
    """Print what went wrong as one message, and return the exit code for it."""
    if terminal.verbose:
        traceback.print_exception(error)
    if isinstance(error, SnedError):
        terminal.say("error", str(error), "red")
        return error.exit_code
    if usage := getattr(error, "format_message", None):
        return _explain_usage(error, usage(), terminal)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        terminal.say("error", f"the disk is full: {error}\n  hint: free some space, and repeat the command", "red")
        return NOT_WRITTEN
    if _ran_out_of_memory(error):
        remedy = "--stream on reads layers from disk one by one; a smaller --seq-len needs less, too"
        remedy += "; so does --recompute" if terminal.command.startswith("sned heal") else ""
        terminal.say("error", f"out of memory: {error}\n  hint: {remedy}", "red")
        return FAILED
    message = f"{type(error).__name__}: {error}\n  This is a bug in sned; repeat with -v to see where."
    terminal.say("error", message, "red")
    return FAILED


def _ran_out_of_memory(error: Exception) -> bool:
    """Tell whether it did; torch has an error of its own for that on a GPU, and on a CPU only a message."""
    if isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error):
        return True
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def _explain_usage(error: Any, message: str, terminal: Terminal) -> int:
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        return USAGE
    path = context.command_path if context is not None else "sned"
    terminal.say("error", f"{message}\n  hint: {path} --help", "red")
    return USAGE
