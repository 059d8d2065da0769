"""The object stores are there for every test that asks."""

pytest_plugins = ("tests.stores",)
