"""Costs of single parts of zfarm, in CPU time, without processes or sockets."""
