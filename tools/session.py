"""What all commands share: `--json`, `--run`, `--state`, and how errors become exit codes."""

import errno
import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

import click

from tools.client import CALL_TIMEOUT_MS, Client
from tools.errors import BadUsage, Interrupted, ToolError
from tools.output import Output
from tools.paths import Places, find_places
from tools.streams import StdoutFailed

TIMEOUT_S: Final = click.IntRange(0, 86_400)  # of every --timeout; 0 is one look
EXIT_INTERRUPTED: Final = Interrupted.exit_code
EXIT_BROKEN_PIPE: Final = 141  # 128 + SIGPIPE: the reader (`head`) has gone, no error of ours


class Session:
    """One run of one command."""

    def __init__(self, *, out: Output, run: str | None, state: str | None) -> None:
        self.out = out
        self._run = run
        self._state = state

    @property
    def places(self) -> Places:
        """Raises BadUsage where there is no place."""
        return find_places(run=self._run, state=self._state)

    def connect(self, *, timeout_ms: int = CALL_TIMEOUT_MS) -> Client:
        """Raises DaemonUnreachable."""
        return Client(self.places.socket, timeout_ms=timeout_ms)


def _common_options() -> list[click.Parameter]:
    return [
        click.Option(["--json", "as_json"], is_flag=True, help="One JSON envelope on stdout."),
        click.Option(["--run", "run_dir"], metavar="DIR", help="Place of the socket [APF_RUN]."),
        click.Option(["--state", "state_dir"], metavar="DIR", help="Place of data [APF_STATE]."),
    ]


def not_empty(_ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """A callback of options whose absence means something else than an empty word would."""
    if value == "":
        raise click.BadParameter("it is empty; leave the option out, or say what", param=param)
    return value


class ApfCommand(click.Command):
    """A command that takes the common options and finds its Session in `ctx.obj`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(_common_options())

    def invoke(self, ctx: click.Context) -> Any:
        outer = ctx.find_root().params
        ctx.obj = Session(
            out=Output(as_json=bool(ctx.params.pop("as_json") or outer.get("as_json"))),
            run=ctx.params.pop("run_dir") or outer.get("run_dir"),
            state=ctx.params.pop("state_dir") or outer.get("state_dir"),
        )
        return super().invoke(ctx)


class ApfGroup(click.Group):
    """A group that imports a command when it is asked for, and turns errors into exit codes.

    `lazy` maps a name to ("module:attribute", short help): the help needs no import.
    """

    command_class: type[click.Command] | None = ApfCommand

    def __init__(
        self,
        *args: Any,
        lazy: Mapping[str, tuple[str, str]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = dict(lazy or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self._lazy, *(name for name in self.commands if name not in self._lazy)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        known = super().get_command(ctx, cmd_name)
        if known is not None or cmd_name not in self._lazy:
            return known
        module, _, attribute = self._lazy[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        self.add_command(command, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for name in self.list_commands(ctx):
            if name in self._lazy:
                rows.append((name, self._lazy[name][1]))
            else:
                command = self.commands[name]
                if not command.hidden:
                    rows.append((name, command.get_short_help_str(limit=80)))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        words = list(sys.argv[1:] if args is None else args)
        out = Output(as_json="--json" in words[: words.index("--") if "--" in words else None])
        try:
            status = self._run(words, prog_name or "apf", complete_var, out, extra)
            sys.stdout.flush()
        except StdoutFailed as exc:  # of the result, of an error's envelope, or of the last flush
            if exc.errno == errno.EPIPE:
                _leave(EXIT_BROKEN_PIPE)
            out.say(f"apf: {exc}")
            _leave(BadUsage.exit_code)
        _leave(status)

    def _run(
        self,
        words: list[str],
        prog_name: str,
        complete_var: str | None,
        out: Output,
        extra: Mapping[str, Any],
    ) -> int:
        """The exit code. Raises StdoutFailed."""
        result: object = 0
        try:
            result = super().main(words, prog_name, complete_var, standalone_mode=False, **extra)
        except ToolError as exc:
            out.error(exc)
            return exc.exit_code
        except click.UsageError as exc:
            usage = exc.ctx.get_usage() + "\n" if exc.ctx else ""
            out.error(BadUsage("usage", f"{exc.format_message()}\n{usage}".rstrip()))
            return exc.exit_code
        except click.ClickException as exc:
            out.error(BadUsage("usage", exc.format_message()))
            return exc.exit_code
        except (KeyboardInterrupt, click.Abort):
            out.say("apf: interrupted")
            return EXIT_INTERRUPTED
        return result if isinstance(result, int) else 0


def _leave(status: int) -> NoReturn:
    sys.exit(status)
