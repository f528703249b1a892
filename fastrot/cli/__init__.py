"""The command line: each command parses its options into one request and calls one function."""
