"""What this project takes against the plain computation, measured side by side. README.md has the last tables."""
