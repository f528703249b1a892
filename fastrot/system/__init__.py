"""The operating system: files, processes, locks, signals, the terminal."""
