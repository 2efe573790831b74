"""A task farm with the face of concurrent.futures: this machine's cores, or many hosts by an address."""

__version__ = "0.1.0"
