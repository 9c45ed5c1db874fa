"""What every room uses: errors, the journal, waiting, files, paths, secrets."""
