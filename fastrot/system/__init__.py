"""The interface to the operating system: files, processes, locks, signals and the terminal."""
