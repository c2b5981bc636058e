"""The services of a HexAGenT stack, each started with `python -m hexagent_services.NAME`."""

import os

# gRPC reads it when it is imported. With its handlers, children of a process that uses gRPC may crash before they
# become the program that they are started for.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
