"""`hexagent profile` as it is called."""

import json
from pathlib import Path

import pytest

from hexagent.cli.main import run_command
from tests.unit.test_measured import HEADER, ROWS


def rows(path: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(path.read_text())["rows"]
    return found


def test_list_names_every_engine_that_is_shipped(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    assert run_command(["profile", "list", "--json", str(out)]) == 0
    assert len(rows(out)) == 117
    assert run_command(["profile", "list", "--gpu", "h100", "--model", "qwen3-32b", "--json", str(out)]) == 0
    assert {(row["gpu"], row["model"], row["source"]) for row in rows(out)} == {("h100", "qwen3-32b", "silicon")}


def test_imported_tables_are_written_shown_and_drawn(tmp_path: Path) -> None:
    measured, table, out, picture = (tmp_path / name for name in ("m.csv", "t.csv", "rows.json", "p.png"))
    measured.write_text("\n".join([HEADER, *ROWS]))
    assert run_command(["profile", "import", str(measured), "--out", str(table), "--json", str(out)]) == 0
    assert rows(out)[0]["prefill_points"] == 6
    assert rows(out)[0]["decode_points"] == 9
    assert run_command(
        ["profile", "show", "--gpu", "h100", "--file", str(table), "--picture", str(picture), "--json", str(out)]
    ) == 0  # fmt: skip
    assert [(row["source"], row["p512"]) for row in rows(out)] == [("user", 45.96), ("silicon", rows(out)[1]["p512"])]
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["import", "BAD"], "row 2: time_us: 'nan' is not a time"),
        (["import", "none.csv"], "CSV: cannot read the measurements none.csv"),
        (["show", "--gpu", "v100"], "--gpu: unknown GPU type 'v100'"),
        (["show", "--model", "gpt-2"], "--model: unknown model 'gpt-2'"),
        (["show", "--precision", "int3"], "--precision: unknown precision 'int3'"),
        (["show", "--tp", "3"], "--tp: tensor-parallel size 3"),
        (["show", "--gpu", "h100", "--tp", "1"], "--tp: no GPU runs llama-3.1-70b in bf16 on 1 of its kind"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("\n".join([HEADER, ROWS[0].rpartition(",")[0] + ",nan", *ROWS[1:]]))
    assert run_command(["profile", *(str(bad) if word == "BAD" else word for word in arguments)]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
