"""The command line of gpu-check: which stages run, and where what they find goes."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from ds4export.cuda.build import FOLDER, registered_ops
from ds4export.errors import ToolchainError
from ds4export.ops import ALL_OPS
from ds4export.ptxhost.toolchain import REPOSITORY
from tests.cuda import page
from tests.cuda.session import MODELS, Outcome, Plan, Session, build_for_gpu

DRY_OPS = ("embed", "hc_post", "rms_norm")


def command(description: str) -> None:
    """Parse, run, write the files, print the verdict; exits."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ops", nargs="+", choices=registered_ops())
    parser.add_argument("--models", nargs="*", choices=MODELS)
    parser.add_argument("--limit-s", type=float, default=570.0, help="everything ends by then")
    parser.add_argument("--dry-run", action="store_true", help="on the host, without a GPU")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    try:
        outcome = dry_run(arguments) if arguments.dry_run else gpu_run(arguments)
    except ToolchainError as error:
        sys.exit(f"error: {error}")
    otherwise = FOLDER / "dry-run" if arguments.dry_run else REPOSITORY / "docs/gpu"
    for path in page.write(outcome, arguments.out or otherwise):
        print(path)
    show(outcome, dry=arguments.dry_run)
    sys.exit(outcome.verdict != "PASSED")


def gpu_run(arguments: argparse.Namespace) -> Outcome:
    import torch

    if not torch.cuda.is_available():
        raise ToolchainError(
            "torch sees no GPU", found=f"torch {torch.__version__}", hint="--dry-run needs none"
        )
    start = time.monotonic()
    target, build = build_for_gpu()
    ops = tuple(arguments.ops or registered_ops())
    models = MODELS if arguments.models is None else tuple(arguments.models)
    plan = Plan(ops, models, arguments.limit_s)
    session = Session(plan, build, say, start=start)
    session.check_ops()
    session.check_models()
    session.measure()
    session.run_plugin_host(target)
    session.sanitize(target)
    return session.conclude(without_kernel())


def dry_run(arguments: argparse.Namespace) -> Outcome:
    """The same binding, launchers and cases; the stand-in runtime plays the kernels on the host."""
    from tests.cuda.stand_in import build_stand_in

    start = time.monotonic()
    ops = tuple(arguments.ops or DRY_OPS)
    stand_in = build_stand_in(None if arguments.models else ops)
    plan = Plan(ops, tuple(arguments.models or ()), arguments.limit_s, small=True)
    session = Session(
        plan, stand_in.build, say, device="cpu", environment=stand_in.settings(), start=start
    )
    session.check_ops()
    session.check_models()
    return session.conclude(without_kernel())


def without_kernel() -> list[str]:
    return [name for name in ALL_OPS if name not in registered_ops()]


def say(line: str) -> None:
    print(line, flush=True)


def show(outcome: Outcome, *, dry: bool) -> None:
    for what, lines in (("wrong", outcome.wrong), ("not run", outcome.not_run)):
        for line in lines:
            print(f"  {what}: {line}")
    print(f"without a kernel: {', '.join(outcome.without_kernel) or 'none'}")
    where = "on the host, no GPU was used" if dry else f"on {outcome.device.get('device')}"
    print(f"{outcome.verdict}  {where}  {outcome.seconds:.0f} s")
