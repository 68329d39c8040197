"""The tests of `vitcli`, a folder for each room of the package. Shared: helpers/ and the fixtures in conftest.py."""
