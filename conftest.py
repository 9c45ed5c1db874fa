"""Only what pytest wants at the top level; the plugin comes through its entry point."""

pytest_plugins = ("pytester",)
