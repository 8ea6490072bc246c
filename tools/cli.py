"""`apf`: the table of its commands. Each is imported only when it is used, so that `apf --help`
and `apf decode` start fast."""

from typing import Final

import click

from tools.session import ApfGroup
from tools.streams import guard_streams

_COMMANDS: Final = {
    "up": ("tools.commands.power:up_command", "Start keeper and daemon; 0 when ready."),
    "down": ("tools.commands.power:down_command", "Stop daemon, keeper and local CNMs."),
    "status": ("tools.commands.power:status_command", "The daemon, its journal and counters."),
    "demo": ("tools.demo.command:demo_command", "The main job, end to end, each step proven."),
    "cnm": ("tools.commands.cnm:cnm_group", "Modules: ls, show, power."),
    "drain": ("tools.commands.cnm:drain_command", "Move everything off a CNM."),
    "undrain": ("tools.commands.cnm:undrain_command", "Let a CNM take instances again."),
    "submit": ("tools.commands.submit:submit_command", "Run a Compose file on the card."),
    "plan": ("tools.commands.plan:plan_command", "Where a Compose file would go; changes nothing."),
    "explain": ("tools.commands.explain:explain_command", "Why here, why not there, what helps."),
    "ps": ("tools.commands.workload:ps_command", "Instances, where and how they are."),
    "logs": ("tools.commands.workload:logs_command", "What an instance has written."),
    "rm": ("tools.commands.workload:rm_command", "Remove a workload."),
    "migrate": ("tools.commands.workload:migrate_command", "Move an instance to another CNM."),
    "events": ("tools.commands.events:events_command", "What has happened on the card."),
    "top": ("tools.commands.top:top_command", "How full the card is, live."),
    "heatmap": ("tools.commands.heatmap:heatmap_command", "How full it was, as a picture."),
    "image": ("tools.commands.image:image_group", "Images: import, ls, rm."),
    "volume": ("tools.commands.volume:volume_group", "Volumes: ls, flush."),
    "profile": ("tools.commands.profile:profile_group", "Measured use and reservations: ls, show."),
    "board": ("tools.commands.board:board_group", "Board files: check."),
    "cxl": ("tools.commands.cxl:cxl_group", "CXL memory devices: ls, show; --record FILE."),
    "decode": ("tools.decode:decode_command", "Decode captured bytes, layer by layer."),
    "bench": ("tools.bench.command:bench_command", "Figures beside their baselines."),
    "sim": ("tools.sim.command:sim_command", "A card on virtual time, under every fault."),
    "completion": ("tools.commands.completion:completion_command", "Shell completion."),
}


@click.group(cls=ApfGroup, lazy=_COMMANDS, no_args_is_help=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON envelope on stdout.")
@click.option("--run", "run_dir", metavar="DIR", help="Place of the socket [APF_RUN].")
@click.option("--state", "state_dir", metavar="DIR", help="Place of data [APF_STATE].")
@click.version_option(package_name="adaptive-peripheral-fabric", prog_name="apf")
def cli(as_json: bool, run_dir: str | None, state_dir: str | None) -> None:
    """Run workloads on the compute node modules of a peripheral card.

    Exit codes: 0 good; 1 what was checked is not so; 2 usage; 3 refused by the daemon;
    4 daemon not reachable; 124 deadline passed; 130 interrupted; 141 nobody reads stdout any more.
    """
    del as_json, run_dir, state_dir  # the commands read them from this context (tools.session)


def main() -> None:
    """The console script."""
    guard_streams()
    cli.main()
