"""The `hexagent` command: a local stack, live runs of workloads, the comparison of policies, explanations."""
