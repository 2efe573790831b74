"""The outside: frames, sockets, pipes, files, processes. It knows messages and actions, not machines."""
