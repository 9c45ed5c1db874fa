"""Load: the plan, the driver that carries it out, one row a request, and the metrics of those rows."""
