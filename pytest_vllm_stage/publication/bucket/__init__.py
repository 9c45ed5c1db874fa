"""Results in an S3 bucket: manifest, upload, reading by hash."""
