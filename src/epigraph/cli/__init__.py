"""The command. Exit code 0: done; 2: the user's mistake, told in one line; 1: ours."""

from __future__ import annotations

import os
import sys
import time

import typer
from typer.exceptions import Abort, Exit, TyperException

from epigraph.cli import bench as bench_commands
from epigraph.cli import data as data_commands
from epigraph.cli import models as models_commands
from epigraph.cli import registry as registry_commands
from epigraph.cli import sweep as sweep_commands
from epigraph.cli import tenants as tenants_commands
from epigraph.cli import vllm as vllm_commands
from epigraph.cli.evaluate import evaluate
from epigraph.cli.fleet import fleet
from epigraph.cli.generate import generate
from epigraph.cli.inspect import inspect
from epigraph.cli.lower import lower
from epigraph.cli.report import report
from epigraph.cli.serve import serve
from epigraph.cli.train import train
from epigraph.errors import UserError

SPEAKING_SECONDS = 2.0

app = typer.Typer(
    name="epigraph",
    help="Teach one frozen language model many tasks, each a few hundred kilobytes of trained virtual tokens.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(models_commands.app, name="models", help="Base models: fetch, list, path.")
app.add_typer(data_commands.app, name="data", help="Datasets: list, fetch, path.")
app.add_typer(bench_commands.app, name="bench", help="Measurements beside the peers: train, serve, fleet, show.")
app.add_typer(sweep_commands.app, name="sweep", help="Many runs from one spec, cost first: run, show.")
app.add_typer(registry_commands.app, name="registry", help="Prefixes in versions: push, list, show, alias, delete, ...")
app.add_typer(tenants_commands.tenants_app, name="tenants", help="Whose prefixes they are: add, list, quotas, remove.")
app.add_typer(tenants_commands.keys_app, name="keys", help="API keys of tenants: make, list, rotate, revoke.")
app.add_typer(vllm_commands.app, name="vllm", help="Prefixes on a stock vLLM server: config, request.")
app.command()(train)
app.command()(fleet)
app.command()(evaluate)
app.command()(generate)
app.command()(inspect)
app.command()(lower)
app.command()(report)
app.command()(serve)


def main(arguments: list[str] | None = None) -> None:
    """Run the command and exit."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        code = app(args=given or ["--help"], prog_name="epigraph", standalone_mode=False)
    except UserError as mistake:
        _fail(str(mistake), mistake.exit_code)
    except TyperException as mistake:
        _fail(_in_words(mistake))
    except Exit as done:
        sys.exit(done.exit_code)
    except (Abort, KeyboardInterrupt):
        _fail("interrupted", code=130)
    else:
        sys.exit(code if isinstance(code, int) else 0)


def _in_words(mistake: TyperException) -> str:
    """A flag or an argument that does not fit: what was got, what was expected, and where all of them are listed."""
    from pydantic import ValidationError

    said, why = mistake.format_message().rstrip("."), mistake.__cause__
    if isinstance(mistake, typer.BadParameter) and mistake.param is not None and isinstance(why, ValidationError):
        wrong = why.errors()[0]
        expected = wrong["msg"].removeprefix("Input should be ").partition(",")[0]
        said = f"{max(mistake.param.opts, key=len)}: got {wrong['input']!r}, expected {expected}"
    context = getattr(mistake, "ctx", None)  # usage errors have one; typer exports no class for them
    if context is None:
        return said
    return f"{said}{' See' if said.endswith('?') else '; see'} `{context.command_path} --help`"


def _fail(message: str, code: int = 2) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(f"epigraph: {message}", file=sys.stderr)
    else:
        # Of processes that were launched together the first speaks for all. Launchers end the rest as soon as one has
        # ended: it must not be that one.
        time.sleep(SPEAKING_SECONDS)
    sys.exit(code)
