"""The command line: reads what a person types, runs one job, shows what came back. May import all of sned.

Starting it must stay quick, so the modules here import typer and rich only; jobs are imported by the command
that runs them.
"""
