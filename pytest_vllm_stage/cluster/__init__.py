"""Where a stage can run; layers above do not depend on the kind of cluster."""
