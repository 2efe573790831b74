"""The tests of zfarm: they mirror the package, and wait on conditions, never on sleeps."""
