"""Measures zfarm and its peers in one run, interleaved, each repetition in a fresh process; see README.md."""
