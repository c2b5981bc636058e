"""The `hexagent` command: a local stack, live runs of workloads, the comparison of policies, explanations."""

import os

# gRPC reads it when it is imported. With its handlers, children of a process that uses gRPC may crash before they
# become the program that they are started for.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
