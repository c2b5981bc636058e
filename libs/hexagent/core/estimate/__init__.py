"""How long things take: tables, learned speeds, output lengths; parameters travel as snapshots."""
