"""Workloads: seeded generators, the reader of recorded traces, and the scripted workflows both give."""
