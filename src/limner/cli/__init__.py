"""The command line: one file a verb, each with ``run(argv) -> exit code``; `main` finds the verb."""
