"""`apf completion bash|zsh|fish`: prints the script to source."""

import click
from click.shell_completion import get_completion_class

from tools.errors import BadUsage
from tools.session import ApfCommand, Session


@click.command("completion", cls=ApfCommand)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(ctx: click.Context, shell: str) -> None:
    """Shell completion. bash: `source <(apf completion bash)`."""
    session: Session = ctx.obj
    kind = get_completion_class(shell)
    if kind is None:
        raise BadUsage("unknown_shell", f"no completion for {shell}")
    root = ctx.find_root().command
    script = kind(root, {}, "apf", "_APF_COMPLETE").source_vars()
    text = kind.source_template % script
    session.out.data("completion", {"shell": shell, "script": text}, lambda: click.echo(text))
