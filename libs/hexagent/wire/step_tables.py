"""Step times that a cluster brings of its own."""

from hexagent.api.worker.v1 import cluster_pb2
from hexagent.core.estimate.tables import Grid, StepTable, user_table


def step_table_to_proto(table: StepTable) -> cluster_pb2.StepTable:
    return cluster_pb2.StepTable(
        gpu_type=table.gpu_type,
        model=table.model,
        tp=table.tp,
        precision=table.precision,
        kv_tokens=table.kv_tokens,
        prefill=_grid_to_proto(table.prefill),
        decode=_grid_to_proto(table.decode),
    )


def step_table_from_proto(message: cluster_pb2.StepTable) -> StepTable:
    engine = message.gpu_type, message.model, message.tp, message.precision
    return user_table(engine, message.kv_tokens, _grid_from_proto(message.prefill), _grid_from_proto(message.decode))


def _grid_to_proto(grid: Grid) -> cluster_pb2.StepGrid:
    return cluster_pb2.StepGrid(rows=grid.rows, columns=grid.columns, us=[us for row in grid.us for us in row])


def _grid_from_proto(message: cluster_pb2.StepGrid) -> Grid:
    width = len(message.columns)
    us = tuple(tuple(message.us[i * width : (i + 1) * width]) for i in range(len(message.rows)))
    return Grid(tuple(message.rows), tuple(message.columns), us)
