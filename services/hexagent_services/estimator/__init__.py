"""estimator: learns parameters from what happened and publishes them as versioned snapshots."""
