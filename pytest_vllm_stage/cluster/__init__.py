"""Where a stage can run; nothing above this layer knows which kind of cluster it is."""
