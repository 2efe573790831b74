"""Tests of the outside world: frames, sockets, pipes, files, processes."""
