"""The stage itself: render its manifests, apply them, wait for them, diagnose it, delete it."""
