"""Stand-ins for servers that cannot be had here; each a process of its own, imported by nothing."""
