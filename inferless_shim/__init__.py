"""Run Inferless apps anywhere: JSON in, resumable Server-Sent Events out, on the standard library alone."""

__version__ = "0.1.0"
