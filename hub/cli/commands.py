"""What every command has: examples in its help, `--traceback`, and failures in one line.

Exit codes: 0 all is well; 1 an expected failure, one line on stderr; 2 wrong usage; 70 a bug of
ours, with its traceback; 130 interrupted.
"""

from __future__ import annotations

import errno
import importlib
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any, TypeVar

import click

from hub.cli.output import notify
from hub.errors import HubError

F = TypeVar("F", bound=Callable[..., Any])

# Errors of the operating system that say more about the machine than about the program.
WAYS_OUT = {
    errno.EACCES: "ask who owns it to let you, or choose another place",
    errno.EPERM: "ask who owns it to let you, or choose another place",
    errno.EROFS: "choose a place that can be written",
    errno.ENOSPC: "free some space and try again",
    errno.EDQUOT: "free some space and try again",
    errno.ENOENT: "check its name",
    errno.ENOTDIR: "check its name: a part of it is a file",
    errno.EISDIR: "give a file, this is a folder",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EIO: "check the disk",
    errno.EMFILE: "close some programs, or raise the limit with `ulimit -n`",
}

# Optional packages that say at import what they can't load, which is no news to who runs a command.
CHATTER = ("bitsandbytes", "torch.utils._pytree", "torchao")

# What torch says of tensors larger than the machine, in errors that say no more by their type.
TOO_LARGE = re.compile(
    r"can't allocate memory|not enough memory|size calculation overflowed|multiplication overflow"
    r"|Overflow when unpacking"
)


class Failure(click.ClickException):
    """What ends a command: one line on stderr, and an exit code."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))

    def show(self, file: IO[Any] | None = None) -> None:
        """Write the line to stderr."""
        label = click.style("error:", fg="red")
        click.echo(f"{label} {self.message}", file, err=True, color=self.show_color)


class Bug(Failure):
    """What should not have happened."""

    exit_code = 70


class Interruption(Failure):
    """Ctrl-C."""

    exit_code = 130


class Command(click.Command):
    """A command with examples under its help, and with `--traceback`."""

    def __init__(self, *args: Any, examples: Sequence[str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)
        self.params.append(make_traceback_option())

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        write_examples(self.examples, formatter)


class CommandGroup(click.Group):
    """Commands that are imported when they are asked for.

    homes: `module:function` of each, by name, in the order of the help.
    """

    def __init__(
        self, *args: Any, homes: Mapping[str, str], examples: Sequence[str], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.homes = homes
        self.examples = tuple(examples)
        self.params.append(make_traceback_option())

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the help."""
        return list(self.homes)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in self.homes:
            return None
        module, _, name = self.homes[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, and with names that are close to a wrong one."""
        if args and args[0] not in self.homes and not args[0].startswith("-"):
            from difflib import get_close_matches

            close = get_close_matches(args[0], self.homes, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(self.homes)}"
            ctx.fail(f"no command '{args[0]}'; {hint}")
        return super().resolve_command(ctx, args)

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """As click does it, and without colours where NO_COLOR is set."""
        if os.environ.get("NO_COLOR"):
            extra.setdefault("color", False)
        return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. Whatever it raises ends it as this module's opening says."""
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")
        with silence_warnings(), show_notes(), explain_failures(ctx):
            return super().invoke(ctx)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        write_examples(self.examples, formatter)


def json_option(*keys: str) -> Callable[[F], F]:
    """`--json`, for a command that prints one document with these keys; `[...]` after one tells
    those of its items."""
    text = f"Print one JSON document: {', '.join(keys)}."
    return click.option("--json", "as_json", is_flag=True, help=text)


def part_option() -> Callable[[F], F]:
    """`--part OLD=NEW`, for a command to which a composition's parts come from elsewhere."""
    return click.option(
        "--part",
        "names",
        multiple=True,
        metavar="OLD=NEW",
        callback=read_names,
        help="What a composition's part OLD is to be called here; it may be given more than once.",
    )


def read_names(
    ctx: click.Context, parameter: click.Parameter, value: Sequence[str]
) -> dict[str, str]:
    """New names by the old ones."""
    pairs = [text.partition("=") for text in value]
    for text, (old, _, new) in zip(value, pairs, strict=True):
        if not old or not new:
            raise click.BadParameter(f"{text!r} renames no part; write --part de=german")
    return {old: new for old, _, new in pairs}


def make_traceback_option() -> click.Option:
    return click.Option(
        ["--traceback"],
        is_flag=True,
        expose_value=False,
        callback=remember_traceback,
        help="Show where an error comes from.",
    )


def remember_traceback(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    ctx.find_root().meta["traceback"] = value or ctx.find_root().meta.get("traceback", False)


def write_examples(examples: Sequence[str], formatter: click.HelpFormatter) -> None:
    """The examples as they are typed, never wrapped."""
    formatter.write_paragraph()
    with formatter.section("Example" if len(examples) == 1 else "Examples"):
        for example in examples:
            formatter.write(f"{'':{formatter.current_indent}}{example}\n")


@contextmanager
def explain_failures(ctx: click.Context) -> Iterator[None]:
    """Turn what a command raises into a Failure; leave to click what is click's, and to it the
    reader of a pipe who went away."""
    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
        raise
    except KeyboardInterrupt:
        raise Interruption("interrupted") from None
    except Exception as error:
        message = describe_failure(error)
        if message is None or ctx.meta.get("traceback"):
            click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
        if message is None:
            kind = type(error).__name__
            raise Bug(
                f"{kind}: {error}; this is a bug in pefthub: please report it with the lines above"
            ) from error
        raise Failure(message) from error


def describe_failure(error: Exception) -> str | None:
    """The line for an expected failure; None for a bug."""
    if isinstance(error, HubError):
        return str(error)
    if isinstance(error, OSError) and error.errno in WAYS_OUT:
        what = f"{error.filename}: " if error.filename is not None else ""
        return f"{what}{(error.strerror or str(error)).lower()}; {WAYS_OUT[error.errno]}"
    if is_out_of_memory(error):
        return "out of memory; use a smaller --batch-size or --max-length, or a smaller base"
    if isinstance(error, RuntimeError | TypeError) and TOO_LARGE.search(str(error)):
        return (
            "a tensor of that size fits into no memory; use smaller options of the method (--set)"
        )
    return None


def is_out_of_memory(error: Exception) -> bool:
    """Whether Python, or torch on an accelerator, was refused memory."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


@contextmanager
def silence_warnings() -> Iterator[None]:
    """Show none of Python's warnings, unless it was started with -W, nor what libraries log when
    they are imported: which kernels they do without."""
    for name in CHATTER:
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        yield


@contextmanager
def show_notes() -> Iterator[None]:
    """What the library has to say, as `note: ...` on stderr."""
    log = logging.getLogger("hub")
    handler = NoteHandler(logging.WARNING)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


class NoteHandler(logging.Handler):
    """Writes to the stderr of the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        notify(record.getMessage())
