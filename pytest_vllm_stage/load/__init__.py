"""Load: the plan, the driver that carries it out, one row per request, and the metrics of those rows."""
