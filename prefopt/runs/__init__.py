"""One run: its folder, manifest, stages and progress."""
