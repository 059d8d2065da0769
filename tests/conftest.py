"""The object stores are there for every test that asks, and Ctrl-C works in what the tests start."""

import signal

pytest_plugins = ("tests.stores",)
# A shell that runs the tests in the background has its children ignore Ctrl-C, and theirs would too.
signal.signal(signal.SIGINT, signal.default_int_handler)
