"""The command line: ``proxystore run script.py``, and the tools around it.

`main` is where it begins. ``run`` loads no command-line framework; every other command is one module,
loaded when it is called, with one line in the table of `commands`.
"""
