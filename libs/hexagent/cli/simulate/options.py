"""What is simulated, as options that `sim run` and `sim compare` share."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Concatenate, NamedTuple, ParamSpec

import typer

P = ParamSpec("P")

Model = Annotated[str, typer.Option("--model", help="llama-3.1-70b, qwen3-235b-a22b, ...")]
EngineProfile = Annotated[str, typer.Option("--engine-profile", help="What engines can do: trtllm-1.2.1, push, ...")]


class Axes(NamedTuple):
    """Each field is an option; text may name several values, with commas between."""

    workload: Annotated[str, typer.Option(help="sharegpt, bfcl, lats, mixed, ...")] = ""
    trace: Annotated[Path | None, typer.Option(metavar="FILE", help="Recorded workflows, JSON lines.")] = None
    cluster: Annotated[str, typer.Option(help="hetero-1, hetero-2, homogeneous, mixed-3 or mini.")] = "hetero-1"
    model: Model = "llama-3.1-70b"
    world: Annotated[str, typer.Option(help="policy-only: nothing is cached; full: engines reuse prefixes.")] = (
        "policy-only"
    )
    engine_profile: EngineProfile = "trtllm-1.2.1"
    load: Annotated[
        str, typer.Option(help="Of the phase that is the bottleneck, 1 = always busy; 0: the workload's own rate.")
    ] = "0"
    arrivals: Annotated[str, typer.Option(help="fixed, poisson, gamma or gamma:CV.")] = "fixed"
    duration: Annotated[
        float,
        typer.Option(min=0, help="Seconds of arrivals, the first tenth not judged; 0: the workload's own number."),
    ] = 0.0
    workflows: Annotated[int, typer.Option(min=0, help="How many, or read of a trace; 0: all it has.")] = 0
    noise: Annotated[str, typer.Option(help="Log error of all estimates, 0 to 2; engines stay as they are.")] = "0"
    link: Annotated[str, typer.Option(help="GB/s of each instance: 12.5, 25, 50.")] = "25"
    hardware: Annotated[
        str, typer.Option(help="tables, or slower-stack: decode twice, prefill 1.4 times as long as the tables.")
    ] = "tables"
    tp: Annotated[str, typer.Option(help="GPUs of an instance; 0: 4 for 70B, 8 for 235B.")] = "0"
    tools: Annotated[str, typer.Option(help="Times the workload's tool times, 0 to 100.")] = "1"
    spread: Annotated[str, typer.Option(help="Log standard deviation of calls a workflow; -1: the workload's own.")] = (
        "-1"
    )
    hints: Annotated[
        str, typer.Option(help="Log error of the horizon that each client hints, 0 to 2; -1: no hints.")
    ] = "-1"
    lengths: Annotated[
        str, typer.Option(help="Of outputs, that schedulers know: learned quantiles, means of classes, or true.")
    ] = "learned"
    flip: Annotated[
        str, typer.Option(help="Seconds a change of role takes, which the profile may allow; -1: engines cannot.")
    ] = "-1"
    profile: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TOML with numbers of policies other than the default.")
    ] = None
    tenants: Annotated[
        str, typer.Option(help="NAME:WEIGHT, or NAME:WEIGHTxN whose workflows fan out N-fold: a:1,b:1x8.")
    ] = ""
    models: Annotated[
        str, typer.Option(help="Of the calls, evenly; each has the cluster's instances for itself. Default: --model.")
    ] = ""


def takes_axes(command: Callable[Concatenate[Axes, P], None]) -> Callable[..., None]:
    """The command with an option for each axis ahead of its own."""

    def called(**options: object) -> None:
        axes = Axes(**{name: options.pop(name) for name in Axes._fields})  # type: ignore[arg-type]
        command(axes, **options)  # type: ignore[arg-type,call-arg]

    own = list(inspect.signature(command).parameters.values())[1:]
    parameters = [*inspect.signature(Axes).parameters.values(), *own]
    called.__name__, called.__doc__ = command.__name__, command.__doc__
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    called.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    )
    return called
