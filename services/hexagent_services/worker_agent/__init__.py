"""worker-agent: one engine, or several emulated instances, under the scheduler's orders."""
