"""The scheduler's core: a projection of workflows with costs, a ledger of the cluster, and decisions."""
