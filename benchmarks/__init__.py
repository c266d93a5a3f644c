"""Time and memory of this project's computations beside the plain ones. README.md has the latest tables."""
