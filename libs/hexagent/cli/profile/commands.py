"""`hexagent profile list`, `show` and `import`: parsing and help."""

from pathlib import Path
from typing import Annotated

import typer

from hexagent.cli.options import Json, examples

profile = typer.Typer(
    name="profile", help="Step times of engines: list them, draw them, bring your own.", no_args_is_help=True
)

_Model = Annotated[str, typer.Option("--model", help="llama-3.1-70b, qwen3-235b-a22b, ...; default: all.")]
_Gpu = Annotated[str, typer.Option("--gpu", help="a100, h100, ...; default: all.")]
_File = Annotated[
    Path | None, typer.Option("--file", metavar="CSV", help="Measured step times, beside those that are shipped.")
]


@profile.command(
    "list", epilog=examples("hexagent profile list", "hexagent profile list --model qwen3-32b --json rows.json")
)
def profile_list(model: _Model = "", gpu: _Gpu = "", file: _File = None, json_file: Json = None) -> None:
    """Say which engines have measured step times: a prefill of 4,096 tokens, a decode step of 8 calls at 1,024."""
    from hexagent.cli.profile.engines import chosen, engine_row
    from hexagent.cli.report import check_writable, console, table_of, write_json

    check_writable(json_file)
    rows = [engine_row(table) for table in chosen(file, model, gpu)]
    console().print(table_of("engines", rows))
    write_json(json_file, "profile list", None, rows)


@profile.command(
    "show",
    epilog=examples(
        "hexagent profile show --picture engines.png",
        "hexagent profile show --model llama-3.1-8b --tp 1 --precision fp8 --picture 8b.png",
        "hexagent profile show --file measured.csv --gpu h100 --picture beside.png",
    ),
)
def profile_show(
    model: Annotated[str, typer.Option("--model", help="A model.")] = "llama-3.1-70b",
    tp: Annotated[int, typer.Option("--tp", min=1, help="GPUs of an instance.")] = 4,
    precision: Annotated[str, typer.Option("--precision", help="bf16 or fp8.")] = "bf16",
    gpu: _Gpu = "",
    file: _File = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="PNG", help="Draw prefill and decode of each GPU.")
    ] = None,
    json_file: Json = None,
) -> None:
    """Prefill and decode times of one model on each GPU, measured or by roofline.

    Columns: pN is a prefill of N tokens, dBxC a decode step of B calls at C tokens of context.
    """
    from hexagent.cli.profile.engines import curve_row, kinds
    from hexagent.cli.report import check_writable, console, table_of, write_json

    check_writable(json_file)
    check_writable(picture, "picture")
    tables = kinds(file, model, tp, precision, gpu)
    rows = [curve_row(table) for table in tables]
    console().print(table_of(f"{model}, {tp} GPUs, {precision}: milliseconds", rows))
    if picture is not None:
        from hexagent.cli.profile.pictures import draw_curves

        draw_curves(tables, picture)
    write_json(json_file, "profile show", None, rows)


@profile.command(
    "import",
    epilog=examples("hexagent profile import measured.csv", "hexagent profile import measured.csv --out engines.csv"),
)
def profile_import(
    file: Annotated[
        Path, typer.Argument(metavar="CSV", help="gpu,model,tp,precision,phase,new_tokens,cached_tokens,batch,...")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the tables made of it, for a cluster file.")
    ] = None,
    json_file: Json = None,
) -> None:
    """Make tables of your measurements, and say how they stand to the nominal ones.

    Columns: gpu, model, tp, precision, phase (prefill or decode), new_tokens and cached_tokens of a prefill, batch and
    context of a decode step, time_us. A cluster file names the result in its key `tables`.
    """
    from hexagent.cli.profile.engines import import_row, write_tables
    from hexagent.cli.report import check_writable, console, table_of, write_json
    from hexagent.runtime.measured_files import read_measured

    check_writable(json_file)
    check_writable(out, "out")
    tables = read_measured(file)
    rows = [import_row(table) for table in tables]
    console().print(table_of(f"measured, {file}", rows))
    if out is not None:
        write_tables(tables, out)
    write_json(json_file, "profile import", None, rows)
