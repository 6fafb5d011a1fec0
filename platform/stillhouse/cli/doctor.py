"""The command that checks whether a sweep can run here."""

from typing import Annotated

import typer

from stillhouse.cli.app import OK, app, as_exit_code
from stillhouse.cli.options import Debug, Home, Json
from stillhouse.cli.output import print_json
from stillhouse.errors import InfrastructureError


@app.command()
@as_exit_code
def doctor(
    home: Home = None,
    address: Annotated[
        str | None,
        typer.Option(
            "--address", help="The address of a running Ray cluster: also check each of its nodes, from a worker there."
        ),
    ] = None,
    tracking: Annotated[
        str | None,
        typer.Option(
            "--tracking", metavar="URI", help="The MLflow store to check from each node. Default: the one in the home."
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Check what a sweep needs: packages, cores, GPUs, the home's free space and permissions, MLflow, every node."""
    from stillhouse.doctor import examine
    from stillhouse.sweep.home.sweep_home import resolve_home

    root = resolve_home(home)
    findings = examine(root)
    if address is not None:
        from stillhouse.sweep.cluster.node_checks import examine_cluster
        from stillhouse.sweep.progress import native_stderr_in

        with native_stderr_in(root / "driver.log"):
            findings += examine_cluster(address, root, tracking)
    if as_json:
        print_json([vars(finding) for finding in findings])
    else:
        for finding in findings:
            where = f"{finding.node} " if finding.node else ""
            print(f"{'ok  ' if finding.good else 'BAD '} {where}{finding.what}: {finding.fact}")
    return OK if all(finding.good for finding in findings) else InfrastructureError.exit_code
