"""Discrete-event driver of the shipped cores: world, workloads, faults, metrics; no network, event loop or clock."""
