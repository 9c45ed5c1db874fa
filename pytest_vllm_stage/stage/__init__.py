"""The stage itself: render its manifests, apply them, wait for them, say what is wrong with it, take it away."""
